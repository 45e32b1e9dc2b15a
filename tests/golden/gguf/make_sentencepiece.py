"""Writes sentencepiece.gguf (tokenizer keys only) and sentencepiece.json (texts with SentencePiece's own ids).

    python3 -m venv venv && venv/bin/pip install gguf sentencepiece
    venv/bin/python tests/golden/gguf/make_sentencepiece.py
"""

import json
import tempfile
from pathlib import Path

import sentencepiece
from gguf import GGUFWriter

here = Path(__file__).parent
TEXTS = [
    "The state of our union is strong.",
    "  two spaces,  and three   more ",
    "tabs\tand\n\nnewlines\r\n",
    "naïve café — “quotes” … 東京 🙂",
    '{"name": "Ada", "born": 1815}',
    "aaaaaaaaaaaa the the the thethethe",
    "",
    " ",
]

with tempfile.TemporaryDirectory() as tmp:
    text = Path(tmp, "text")
    text.write_text((here / "../../../pipelines/data/corpus.txt").read_text()[:300_000])
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=f"{tmp}/m", vocab_size=1000, model_type="bpe", byte_fallback=True, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, num_threads=1,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=f"{tmp}/m.model")

ids = range(model.vocab_size())
kind = lambda i: 2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
w = GGUFWriter(str(here / "sentencepiece.gguf"), "llama")
w.add_tokenizer_model("llama")
w.add_tokenizer_pre("default")
w.add_token_list([model.id_to_piece(i) for i in ids])
w.add_token_scores([model.get_score(i) for i in ids])
w.add_token_types([kind(i) for i in ids])
w.add_bos_token_id(model.bos_id())
w.add_eos_token_id(model.eos_id())
w.add_unk_token_id(model.unk_id())
w.write_header_to_file()
w.write_kv_data_to_file()
w.write_tensors_to_file()
w.close()
cases = [{"text": t, "ids": model.encode(t)} for t in TEXTS]
(here / "sentencepiece.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")

"""200 texts that tokenizers disagree about, written to strings.json.

    python tests/golden/tokenizers/strings.py
"""

import json
from pathlib import Path

PLAIN = ["", " ", "  ", "   ", "    hello", "hello    ", "a  b   c    d", "\t", "\t\t", "\ta\t\tb\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n",
         "line\r\nline\r\n\r\nline\r", " \n", "\n ", " \n \n ", "\n \n", "a\n b\n  c\n   d", "x \n\n  y", "x\n\n\n\ny", "end. \n", "end.\n\n",
         "!\n\n\nwhat", "?! \n ?!\n", "\n\n  \t\n  if", " \t \t", "a \t b", "a\u000bb\u000cc", "a\u0085b", "a\u2028b\u2029c", "tail   \n   ",
         "The state of our union is strong.", "Hello, world!", "Hello,world!how   are\n\nyou?", "hello HELLO Hello hELLO"]
NUMBERS = ["1", "12", "123", "1234", "12345", "123456", "1234567", "12345678901234567890", "0.5", "3.14159", "1,000,000", "-42", "+7", "1e-10",
           "0xDEADBEEF", "10:45:07", "2026-11-27", "$1,234.56", "99%", "1st 2nd 3rd 100th", "a1b22c333d4444", " 1 22 333 4444", "½ ¾ ²³ ⅻ ①②③",
           "١٢٣٤٥٦", "१२३४५", "๑๒๓๔", "１２３４", "一二三四", "x=1;y=22;z=333", "192.168.100.1", "1 000 000", "v1.2.3-rc4", "7b 13B 70b", "٣.١٤"]
QUOTES = ["I'm you're he's we've they'll I'd don't", "I'M YOU'RE HE'S WE'VE THEY'LL I'D DON'T", "I'm I'M I'Re i'Ve 'S'T'RE'VE'M'LL'D",
          "'s't're've'm'll'd", " 's 't 're", "''s ''", "o'clock rock'n'roll 'tis", "It’s we’re", "L'État c'est moi", "'sun 'tree 'red 'very",
          "'\u017f '\u017fun", "d'accord D'ACCORD", "'ß 'Δ", "\"quoted\" 'single' `tick`", "he said:'s", "a'b'c", "'", "''", "'re\n're"]
SCRIPTS = ["Привет, мир!", "ПРИВЕТ Мир ПриветМир", "Съешь ещё этих мягких французских булок", "Ёлка ёж", "Україна їжак", "Ελληνικά ΑΒΓ αβγ",
           "ΚαλημέραΚόσμε", "مرحبا بالعالم", "السَّلَامُ عَلَيْكُمْ", "שָׁלוֹם עולם", "हिन्दी में नमस्ते", "नमस्ते दुनिया १२३", "বাংলা ভাষা", "தமிழ் மொழி",
           "ภาษาไทยไม่มีช่องว่าง", "สวัสดีครับ 123", "中文分词测试", "我们1984年在北京。", "日本語のテキスト、カタカナとひらがな", "東京タワー２０２０", "한국어 형태소 분석",
           "안녕하세요 세계 123", "ქართული ენა", "Հայերեն լեզու", "አማርኛ", "ខ្មែរ", "မြန်မာ", "ᏣᎳᎩ", "Ꭰꭰ", "ǅungla ǈ ǋ", "ʰʷ modifier ʼletters", "Straße STRASSE ẞ",
           "İstanbul ISTANBUL ılık", "naïve café résumé", "Ångström ÅÄÖ åäö", "camelCaseWord XMLHttpRequest iPhone", "ÉcoleÉlève ÉTÉété", "ФилоСофия ΑβΓδ",
           "中Русский日Eng한", "ªº µ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛", "𐐀𐐨 𒀀", "ｆｕｌｌ ＷＩＤＴＨ"]
MARKS = ["e\u0301 a\u0300 n\u0303", "cafe\u0301 CAFE\u0301", "\u00e9 e\u0301 \u1e9b\u0323", "\u212b \u2126", "x\u0301\u0302\u0303\u0304y", "\u0301leading mark",
         "Z\u0351\u036b\u0343a\u0363l\u0348g\u034fo\u035c", "\u1112\u1161\u11ab", "\uac00\u1100\u1161", "क्षि क्‍ष", "ไทย ที่ นี้", "ن\u0651\u064e", "1\u20e3 #\ufe0f\u20e3",
         "a\u0327\u0301", "\u3099か か\u3099 が"]
EMOJI = ["🙂", "🙂🙃 😀😀😀", "👍🏽 👩🏿‍🦱", "👨‍👩‍👧‍👦 family", "🇩🇪🇫🇷🇺🇳", "❤️ ❤", "☃ ★ ☎️", "text🙂text 🙂 text", "👩‍💻 codes 🧑🏻‍🚀", "🏳️‍🌈🏴‍☠️", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "✅ done ❌ no"]
SPACES = ["a\u00a0b", "\u00a0\u00a0x", "10\u00a0000\u00a0€", "a\u2009b\u202fc", "\u3000全角\u3000空白", "a\u200bb", "a\u200cb\u200dc", "\ufeffbom", "a\u2060b", "soft\u00adhyphen",
          "\u202eright\u202c to left", " \u00a0 x", "\u1680ogham\u1680", "a\u180eb", "x\u2003\u2003 y", "\u00a0\n\u00a0", "word \u00a0"]
CONTROL = ["a\x00b", "\x00\x01\x02", "\x1b[31mred\x1b[0m", "bell\x07", "del\x7f\x80\x9f", "\ufffd\ufffe", "\ue000 private \uf8ff", "\x1c\x1d\x1e\x1f"]
SPECIAL = ["<|endoftext|>", "a<|endoftext|>b", "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "<|im_end|> <|im_end|>  <|im_end|>", "<|im_end|", "<|im_end|>>",
           "<tool>x</tool>", " <tool> ", "<tool><tool>\n\n<tool>", "x<|eot_id|>\n\ny", "<|endoftext|><|endoftext|>", "<s>not here</s>", "<unk> <s> </s>",
           "</s><s> hi", "[INST] hi [/INST]", "don<|im_end|>'t", "12<|im_end|>34", "  <|im_start|>  ", "<0x41> <0x0A>", "▁under ▁ _", "Ġ Ċ ĉ"]
CODE = ["def f(x):\n    return x ** 2\n", "if (a && b) {\n\t\treturn a->b[0];\n}\n", "<div class=\"x\">&nbsp;</div>", "SELECT * FROM t WHERE id = 'a''b';",
        "let s = \"\\u{1F600}\\n\";", "#include <stdio.h>\r\nint main(void){return 0;}\r\n", "{\"name\": \"Ada\", \"born\": 1815}", "a+=b; c--; d!=e; f<=g",
        "https://example.com/a/b?c=1&d=%20x#frag", "me@example.org, ftp://x.y:8080//z//", "/usr/local/lib/python3.11/", "C:\\Windows\\System32\\", "snake_case __init__ _x_",
        "foo.bar.baz()...", "----====####****", "||| $$$ +++ ^^^ ~~~ <<<>>>", "a$b+c<d=e>f^g~h|i`j", "∑∫≠≤ €£¥₿ ©®™", "«guillemets» „low“ ‘q’ …—–", "。、！？「」",
        "# Title\n\n- item\n  - sub\n\n```rust\nfn main() {}\n```\n", "$\\frac{1}{2}$ \\alpha", "x/y\n/z //\n\n/", "end/\n/", "!!!\r\n///\r\n"]
MIXED = ["The $1,000 question: \"Who's 21?\"\n\n\tI'm—well, 3/4 sure… 🙂", "Fellow-Citizens of the Senate and House of Representatives:", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
         "ababababababab", "the the thethethe THE", "government Government governments"]

texts = PLAIN + NUMBERS + QUOTES + SCRIPTS + MARKS + EMOJI + SPACES + CONTROL + SPECIAL + CODE + MIXED
assert len(texts) == len(set(texts)) >= 200, len(texts)
lines = ",\n".join(json.dumps(t) for t in texts)
Path(__file__).with_name("strings.json").write_text(f"[\n{lines}\n]\n")
print(len(texts), "texts")

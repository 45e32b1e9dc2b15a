//! How byte-level tokenizers cut a text into pieces, by llama.cpp's names: one table for reading and writing.
//!
//! Every kind is a list of regular expressions, each applied to the pieces of the one before; what an expression does not
//! match is a piece too. Ids are llama.cpp's: where its expression is not the published one (`tekken`), its own is read.

use serde_json::{Value as Json, json};

/// GPT-2's pieces, which the `ByteLevel` of a `tokenizer.json` has built in.
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// `Digits` of a `tokenizer.json`, one by one.
const DIGIT: &str = r"\p{N}";
const LLAMA_3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_35: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's: only ASCII letters have a case, and a combining mark is no part of a word.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]*[\p{L}&&[^A-Z]]+|[^\r\n\p{L}\p{N}]?[\p{L}&&[^a-z]]+[\p{L}&&[^A-Z]]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN_PUBLISHED: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A way to cut a text.
pub(super) struct Pieces {
    /// Names that llama.cpp treats alike; the first is the one that is written.
    pub names: &'static [&'static str],
    regexes: &'static [&'static str],
    /// What published files have instead of `regexes`, where that differs.
    published: Option<&'static [&'static str]>,
    /// Whether a piece that is a token becomes that token without merging.
    pub ignore_merges: bool,
    /// Whether a file that does not say so has BOS before a text.
    pub adds_bos: bool,
}

const fn kind(names: &'static [&'static str], regexes: &'static [&'static str]) -> Pieces {
    Pieces { names, regexes, published: None, ignore_merges: false, adds_bos: false }
}

static TABLE: [Pieces; 8] = [
    kind(
        &[
            "gpt-2",
            "phi-2",
            "olmo",
            "jais",
            "gigachat",
            "mpt",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "trillion",
            "granite-docling",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
        ],
        &[GPT_2],
    ),
    kind(&["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"], &[DIGIT, GPT_2]),
    Pieces {
        ignore_merges: true,
        adds_bos: true,
        ..kind(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"], &[LLAMA_3])
    },
    kind(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA_3]),
    kind(&["qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo", "f2llmv2", "hunyuan", "solar-open", "grok-2"], &[QWEN_2]),
    kind(&["qwen35"], &[QWEN_35]),
    Pieces { ignore_merges: true, adds_bos: true, published: Some(&[TEKKEN_PUBLISHED]), ..kind(&["tekken"], &[TEKKEN]) },
    kind(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT_2, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

/// The kind that llama.cpp calls `name`.
pub(super) fn named(name: &str) -> Option<&'static Pieces> {
    TABLE.iter().find(|p| p.names.contains(&name))
}

/// The names of all kinds, for those who used another.
pub(super) fn names() -> String {
    TABLE.iter().flat_map(|p| p.names).copied().collect::<Vec<_>>().join(", ")
}

impl Pieces {
    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub fn json(&self) -> Json {
        let (last, first) = self.regexes.split_last().unwrap_or((&GPT_2, &[]));
        let built_in = *last == GPT_2;
        let split = |regex: &&str| match *regex {
            DIGIT => json!({"type": "Digits", "individual_digits": true}),
            regex => json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false}),
        };
        let mut parts: Vec<Json> = if built_in { first } else { self.regexes }.iter().map(split).collect();
        parts.push(byte_level(built_in));
        match parts.as_slice() {
            [one] => one.clone(),
            _ => json!({"type": "Sequence", "pretokenizers": parts}),
        }
    }

    /// The kind of a `tokenizer.json`, or why it has none.
    pub fn of(file: &Json) -> Result<&'static Self, String> {
        let mut regexes = Vec::new();
        let in_bytes = flatten(&file["pre_tokenizer"], &mut regexes)?;
        if !in_bytes {
            return Err("it does not end in `ByteLevel`".into());
        }
        let ignore_merges = file["model"]["ignore_merges"] == true;
        let alike: Vec<&Self> =
            TABLE.iter().filter(|p| regexes == p.regexes || p.published.is_some_and(|other| regexes == other)).collect();
        let Some(first) = alike.first() else { return Err(format!("llama.cpp has no name for the pieces {regexes:?}")) };
        alike.iter().find(|p| p.ignore_merges == ignore_merges).copied().ok_or_else(|| {
            format!(
                "`ignore_merges` is {ignore_merges}, and llama.cpp's `{}`, which cuts the same pieces, has it the other way",
                first.names[0]
            )
        })
    }
}

/// The `ByteLevel` of a `tokenizer.json`, with GPT-2's pieces or without any.
pub(super) fn byte_level(use_regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex})
}

/// The expressions of a pre-tokenizer, in order; whether it ends in bytes.
fn flatten(pre: &Json, regexes: &mut Vec<String>) -> Result<bool, String> {
    match pre["type"].as_str() {
        Some("Sequence") => {
            let mut in_bytes = false;
            for part in pre["pretokenizers"].as_array().into_iter().flatten() {
                if in_bytes {
                    return Err("its `ByteLevel` is not the last step".into());
                }
                in_bytes = flatten(part, regexes)?;
            }
            Ok(in_bytes)
        }
        Some("ByteLevel") if pre["add_prefix_space"] == false => {
            regexes.extend((pre["use_regex"] != false).then(|| GPT_2.to_owned()));
            Ok(true)
        }
        Some("ByteLevel") => Err("its `ByteLevel` puts a space before a text".into()),
        Some("Digits") if pre["individual_digits"] == true => {
            regexes.push(DIGIT.to_owned());
            Ok(false)
        }
        Some("Split") if pre["behavior"] == "Isolated" && pre["invert"] != true && pre["pattern"]["Regex"].is_string() => {
            // llama.cpp writes GPT-2's without the last part: what is left over is a piece all the same.
            let short = GPT_2.strip_suffix(r"|\s+");
            let regex = pre["pattern"]["Regex"].as_str().map(|r| if Some(r) == short { GPT_2 } else { r });
            regexes.extend(regex.map(str::to_owned));
            Ok(false)
        }
        Some(other) => Err(format!("llama.cpp has no name for this `{other}` pre-tokenizer")),
        None => Err("it has no pre-tokenizer".into()),
    }
}

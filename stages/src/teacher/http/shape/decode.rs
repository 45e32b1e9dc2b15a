//! The steps of an answer: the bytes that each token stands for, the alternatives that can be read, and its end.

use std::collections::{BTreeMap, BTreeSet};

use super::align::{Aligned, Around, Unaligned, align};
use super::call::Step;
use super::token::{Drawn, Spelling, Token};

/// Texts of tokens that end a turn or a text, as the common families spell them.
const ENDS: [&str; 14] = [
    "</s>",
    "<eos>",
    "<|eos|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<|end|>",
    "<|return|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|END_OF_TURN_TOKEN|>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
];

/// What a server's answers show of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Manner {
    /// How it may spell tokens.
    spellings: Vec<Spelling>,
    ids: BTreeSet<i32>,
    texts: BTreeSet<String>,
}

impl Default for Manner {
    fn default() -> Self {
        Self { spellings: Spelling::ALL.to_vec(), ids: BTreeSet::new(), texts: BTreeSet::new() }
    }
}

impl Manner {
    /// Adds what another answer showed.
    pub fn learn(&mut self, other: &Manner) {
        self.spellings.retain(|s| other.spellings.contains(s));
        self.ids.extend(&other.ids);
        self.texts.extend(other.texts.iter().cloned());
    }

    /// Whether a token is one that ends an answer.
    pub fn is_end(&self, token: &Token) -> bool {
        token.any_id().is_some_and(|id| self.ids.contains(&id)) || token.text.as_ref().is_some_and(|t| self.texts.contains(t))
    }

    /// The tokens that end an answer, in words.
    pub fn ends(&self) -> Vec<String> {
        self.texts.iter().map(|t| format!("`{t}`")).chain(self.ids.iter().map(|id| format!("id {id}"))).collect()
    }

    /// A token ended an answer: whatever is the same one does. An empty text is everybody's.
    fn ended_with(&mut self, token: &Token) {
        self.ids.extend(token.any_id());
        self.texts.extend(token.text.clone().filter(|t| !t.is_empty() && token.any_id().is_none()));
    }
}

/// What an answer is read against.
#[derive(Clone, Copy, Debug)]
pub struct Against<'a> {
    /// What a person would have read.
    pub text: &'a str,
    /// What the tokens may hold besides.
    pub around: Around,
    /// Texts that end an answer and are cut off.
    pub stops: &'a [String],
    /// What the server's other answers showed.
    pub manner: &'a Manner,
}

/// Steps that join to the text.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// Without those that are no part of the text.
    pub steps: Vec<Step>,
    /// The last one, if it ended the answer.
    pub end: Option<Step>,
    /// What this answer shows of the server.
    pub shows: Manner,
}

/// The steps of these tokens, or why the text does not determine them.
pub fn decode(drawn: &[Drawn], against: &Against<'_>) -> Result<Decoded, String> {
    let tokens: Vec<&Token> = drawn.iter().map(|d| &d.token).collect();
    let mut worst = Unaligned::Differs;
    for text in texts(&tokens, against) {
        match align(&tokens, &text, against.around) {
            Ok(aligned) => return Ok(steps(&drawn[aligned.from..], &aligned, against)),
            Err(Unaligned::Ambiguous) => worst = Unaligned::Ambiguous,
            Err(Unaligned::Differs) => {}
        }
    }
    if let Some(decoded) = stopped(drawn, against) {
        return Ok(decoded);
    }
    Err(match worst {
        Unaligned::Ambiguous => "its tokens can be read in several ways that give its text".into(),
        Unaligned::Differs => difference(&tokens, against.text),
    })
}

/// Bytes that the text may be: it shows parts of characters as U+FFFD or not at all.
fn texts(tokens: &[&Token], against: &Against<'_>) -> Vec<Vec<u8>> {
    let text = against.text;
    let mut all = vec![text.as_bytes().to_vec()];
    let plain: Option<Vec<Vec<u8>>> = tokens.iter().map(|t| t.spelled(Spelling::Plain)).collect();
    let Some(plain) = plain else { return all };
    if text.contains('\u{fffd}') {
        let firsts = if against.around.before { 0..plain.len() } else { 0..1.min(plain.len()) };
        let same = firsts.map(|n| plain[n..].concat()).find(|joined| String::from_utf8_lossy(joined).trim() == text.trim());
        all.extend(same);
    } else if against.around.cut {
        let joined = plain.concat();
        let tail = joined.utf8_chunks().last().map_or(&[][..], |chunk| chunk.invalid());
        if !tail.is_empty() {
            all.push([text.as_bytes(), tail].concat());
        }
    }
    all
}

/// An answer that one of `stops` ended: its text ends before it, its tokens reach into it or beyond.
fn stopped(drawn: &[Drawn], against: &Against<'_>) -> Option<Decoded> {
    let spelled = |s: Spelling| drawn.iter().map(|d| d.token.spelled(s)).collect::<Option<Vec<_>>>();
    for all in Spelling::ALL.into_iter().filter_map(spelled) {
        let joined = all.concat();
        for stop in against.stops.iter().filter(|s| !s.is_empty()) {
            let places = (0..joined.len()).filter(|at| joined[*at..].starts_with(stop.as_bytes()));
            for place in places {
                let (mut whole, mut before) = (0, 0);
                while whole < all.len() && before + all[whole].len() <= place {
                    before += all[whole].len();
                    whole += 1;
                }
                let mut kept = drawn[..whole].to_vec();
                if before < place {
                    // Nobody told how likely the part of this token before the stop was.
                    let bytes = all[whole][..place - before].to_vec();
                    kept.push(Drawn { token: Token { bytes: Some(bytes), ..Token::default() }, top: Vec::new() });
                }
                let tokens: Vec<&Token> = kept.iter().map(|d| &d.token).collect();
                if let Ok(aligned) = align(&tokens, against.text.as_bytes(), Around { end: false, cut: false, ..against.around }) {
                    let mut decoded = steps(&kept[aligned.from..], &aligned, against);
                    decoded.end = None;
                    return Some(decoded);
                }
            }
        }
    }
    None
}

fn steps(drawn: &[Drawn], aligned: &Aligned, against: &Against<'_>) -> Decoded {
    let pairs: Vec<(&Drawn, &[u8])> = drawn.iter().zip(aligned.bytes.iter().map(Vec::as_slice)).collect();
    let modes: Vec<Vec<Spelling>> = pairs.iter().map(|(d, b)| modes(&d.token, b)).collect();
    let mut decoded = Decoded::default();
    decoded.shows.spellings.retain(|s| modes.iter().all(|m| m.is_empty() || m.contains(s)));
    let known = pairs.iter().filter(|(_, b)| !b.is_empty()).filter_map(|(d, b)| Some((d.token.any_id()?, *b))).collect();
    let reads = Reads { answer: decoded.shows.spellings.clone(), known, manner: against.manner };
    for (n, ((d, bytes), modes)) in pairs.iter().zip(&modes).enumerate() {
        let is_end = bytes.is_empty() && n + 1 == pairs.len() && (against.around.end || against.manner.is_end(&d.token));
        if bytes.is_empty() && !is_end {
            // A token without bytes in the middle is the server's own mark.
            continue;
        }
        let top = d.top.iter().filter_map(|t| Some((reads.alternative(t, d, bytes, modes)?, t.any_id(), t.logprob?))).collect();
        let step = Step { bytes: bytes.to_vec(), id: d.token.any_id(), logprob: d.token.logprob, top };
        if is_end {
            decoded.shows.ended_with(&d.token);
            decoded.end = Some(step);
        } else {
            decoded.steps.push(step);
        }
    }
    let spelled_out = |t: &&Token| t.text.as_deref().is_some_and(|t| t.starts_with('<') && ENDS.contains(&t));
    for token in drawn.iter().flat_map(|d| &d.top).filter(spelled_out).filter(|t| t.told().is_none_or(<[u8]>::is_empty)) {
        decoded.shows.ended_with(token);
    }
    // A character that was not finished is known to nobody: it is shown as U+FFFD, which nobody drew.
    let unfinished =
        |(d, b): &&(&Drawn, &[u8])| against.around.cut && d.token.is_part() && d.token.text.as_deref().map(str::as_bytes) == Some(b);
    let parts = pairs.iter().rev().take_while(unfinished).count();
    decoded.steps.truncate(decoded.steps.len().saturating_sub(parts));
    decoded
}

/// The spellings in which a token is what it turned out to be; none where it tells nothing about them.
fn modes(token: &Token, bytes: &[u8]) -> Vec<Spelling> {
    if token.is_simple() || token.told().is_some() || bytes.is_empty() {
        return Vec::new();
    }
    Spelling::ALL.into_iter().filter(|s| token.spelled(*s).as_deref() == Some(bytes)).collect()
}

/// How the alternatives of an answer are read.
struct Reads<'a> {
    /// Spellings that all of its tokens agree on.
    answer: Vec<Spelling>,
    /// Bytes by id.
    known: BTreeMap<i32, &'a [u8]>,
    manner: &'a Manner,
}

impl Reads<'_> {
    /// The bytes of an alternative, none of them for an end; nothing where they are not known.
    fn alternative(&self, token: &Token, drawn: &Drawn, bytes: &[u8], modes: &[Spelling]) -> Option<Vec<u8>> {
        let d = &drawn.token;
        if token.text == d.text && token.bytes == d.bytes && token.id == d.id && token.logprob == d.logprob {
            return Some(bytes.to_vec());
        }
        if self.manner.is_end(token) {
            return Some(Vec::new());
        }
        let read = self.spelled(token, modes).or_else(|| token.any_id().and_then(|id| self.known.get(&id)).map(|b| b.to_vec()));
        // Nothing is no end unless the server says so.
        read.filter(|b| !b.is_empty())
    }

    /// By the spellings of its own step, of its answer, or of the server: by the first that leave no doubt.
    fn spelled(&self, token: &Token, modes: &[Spelling]) -> Option<Vec<u8>> {
        let plain = token.spelled(Spelling::Plain);
        if !token.is_doubtful() {
            return plain;
        }
        for spellings in [modes, &self.answer, &self.manner.spellings] {
            let mut found: Vec<_> = spellings.iter().filter_map(|s| token.spelled(*s)).collect();
            found.dedup();
            if found.len() == 1 {
                return found.pop();
            }
        }
        // Nothing showed a spelling: only what does not look like one is taken as it reads.
        plain.filter(|_| !token.text.as_deref().unwrap_or_default().contains(['\u{120}', '\u{10a}', '\u{2581}']))
    }
}

/// Where tokens and text part.
fn difference(tokens: &[&Token], text: &str) -> String {
    let joined: Vec<u8> = tokens.iter().flat_map(|t| t.spelled(Spelling::Plain).unwrap_or_else(|| "\u{fffd}".into())).collect();
    let (read, text) = (String::from_utf8_lossy(&joined).into_owned(), text.to_owned());
    let same = read.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    let part = |s: &str| s.char_indices().skip_while(|(i, c)| i + c.len_utf8() <= same).map(|(_, c)| c).take(24).collect::<String>();
    format!(
        "its tokens are not its text: from byte {same} on they read `{}`, the text `{}`",
        part(&read).escape_debug(),
        part(&text).escape_debug()
    )
}

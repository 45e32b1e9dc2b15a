//! GBNF, the grammars of llama.cpp, as the Lark dialect that `llguidance` reads.
//!
//! GBNF is a grammar over characters; Lark's terminals are cut from the text greedily, which would refuse some of its
//! texts. So every character, and every class of them, becomes a terminal of its own.

use std::fmt::Write as _;

use crate::error::{GrammarError, Result};

/// Bytes of a schema or a grammar, at most.
pub const MAX_BYTES: usize = 256 << 10;

/// How deep a schema, or the groups of a grammar, may be nested.
pub const MAX_DEPTH: usize = 64;

/// Repetitions `{m,n}` count to this, at most.
const MAX_REPEAT: u32 = 2000;

/// The same grammar, its `root` as Lark's `start`.
pub fn to_lark(text: &str) -> Result<String> {
    if text.len() > MAX_BYTES {
        return Err(GrammarError::Large { what: "its bytes", found: text.len(), most: MAX_BYTES }.into());
    }
    let mut reader = Reader { text, at: 0, out: String::new() };
    let (mut rules, mut used) = (Vec::new(), Vec::new());
    reader.space(true);
    while !reader.done() {
        let name = reader.name()?;
        reader.space(true);
        reader.expect("::=")?;
        reader.space(true);
        reader.out.clear();
        reader.alternatives(&mut used, 0)?;
        if rules.iter().any(|(n, _)| *n == name) {
            return Err(reader.wrong(format!("rule `{name}` is defined twice")));
        }
        rules.push((name, std::mem::take(&mut reader.out)));
        reader.space(true);
    }
    let defined = |name: &str| rules.iter().any(|(n, _)| n == name);
    if !defined("root") {
        return Err(reader.wrong("no rule is called `root`".into()));
    }
    if let Some((name, at)) = used.iter().find(|(name, _)| !defined(name)) {
        return Err(Reader { at: *at, ..reader }.wrong(format!("rule `{name}` is not defined")));
    }
    let mut out = "start: r_root\n".to_owned();
    for (name, body) in rules {
        let _ = writeln!(out, "{}: {body}", rule(&name));
    }
    Ok(out)
}

/// Names of rules in Lark are small letters, digits and underscores.
fn rule(name: &str) -> String {
    let mut out = "r_".to_owned();
    for c in name.chars() {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            c => {
                let _ = write!(out, "_{:x}_", c as u32);
            }
        }
    }
    out
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    out: String,
}

impl<'t> Reader<'t> {
    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn done(&self) -> bool {
        self.rest().is_empty()
    }

    fn wrong(&self, why: String) -> crate::error::Error {
        let before = &self.text[..self.at.min(self.text.len())];
        let line = 1 + before.matches('\n').count();
        let column = 1 + before.rsplit('\n').next().map_or(0, |l| l.chars().count());
        GrammarError::Gbnf { line, column, why }.into()
    }

    /// Skips white space and comments; line breaks only where a rule goes on after them.
    fn space(&mut self, lines: bool) {
        loop {
            let rest = self.rest();
            let skip = match rest.chars().next() {
                Some(' ' | '\t') => 1,
                Some('\n' | '\r') if lines => 1,
                Some('#') => rest.find('\n').unwrap_or(rest.len()),
                _ => return,
            };
            self.at += skip;
        }
    }

    fn expect(&mut self, what: &str) -> Result<()> {
        if !self.rest().starts_with(what) {
            let found: String = self.rest().chars().take(12).collect();
            return Err(self.wrong(format!("expected `{what}`, found `{}`", found.escape_debug())));
        }
        self.at += what.len();
        Ok(())
    }

    fn name(&mut self) -> Result<String> {
        let rest = self.rest();
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_')).unwrap_or(rest.len());
        if end == 0 {
            let found: String = rest.chars().take(12).collect();
            return Err(self.wrong(format!("expected the name of a rule, found `{}`", found.escape_debug())));
        }
        self.at += end;
        Ok(rest[..end].to_owned())
    }

    /// `a b | c`, up to `)` or the end of the rule.
    fn alternatives(&mut self, used: &mut Vec<(String, usize)>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(self.wrong(format!("groups are nested more than {MAX_DEPTH} deep")));
        }
        loop {
            let empty = self.out.len();
            self.sequence(used, depth)?;
            if self.out.len() == empty {
                self.out.push_str("\"\"");
            }
            self.space(depth > 0 || self.goes_on());
            if !self.rest().starts_with('|') {
                return Ok(());
            }
            self.at += 1;
            self.out.push_str(" | ");
            self.space(true);
        }
    }

    /// Whether what follows the line breaks is `|`.
    fn goes_on(&self) -> bool {
        let mut ahead = Reader { text: self.text, at: self.at, out: String::new() };
        ahead.space(true);
        ahead.rest().starts_with('|')
    }

    fn sequence(&mut self, used: &mut Vec<(String, usize)>, depth: usize) -> Result<()> {
        loop {
            self.space(depth > 0);
            let begin = self.out.len();
            match self.rest().chars().next() {
                Some('"') => self.literal()?,
                Some('[') => self.class()?,
                Some('.') => {
                    self.at += 1;
                    self.out.push_str("/(?s:.)/");
                }
                Some('(') => {
                    self.at += 1;
                    self.out.push('(');
                    self.space(true);
                    self.alternatives(used, depth + 1)?;
                    self.space(true);
                    self.expect(")")?;
                    self.out.push(')');
                }
                Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                    let at = self.at;
                    let name = self.name()?;
                    self.out.push_str(&rule(&name));
                    used.push((name, at));
                }
                None | Some('|' | ')' | '\n' | '\r') => return Ok(()),
                Some(c) => return Err(self.wrong(format!("`{}` begins nothing", c.escape_debug()))),
            }
            self.repetition(begin)?;
            self.out.push(' ');
        }
    }

    /// `*`, `+`, `?`, `{m}`, `{m,}`, `{m,n}` after what was written from `begin` on.
    fn repetition(&mut self, begin: usize) -> Result<()> {
        let Some(c) = self.rest().chars().next() else { return Ok(()) };
        let suffix = match c {
            '*' | '+' | '?' => {
                self.at += 1;
                c.to_string()
            }
            '{' => self.counts()?,
            _ => return Ok(()),
        };
        let what = self.out.split_off(begin);
        let _ = write!(self.out, "({what}){suffix}");
        Ok(())
    }

    fn counts(&mut self) -> Result<String> {
        let rest = self.rest();
        let end = rest.find('}').ok_or_else(|| self.wrong("`{` without `}`".into()))?;
        let number = |text: &str| -> Result<Option<u32>> {
            match text.trim() {
                "" => Ok(None),
                digits => digits
                    .parse()
                    .ok()
                    .filter(|n| *n <= MAX_REPEAT)
                    .map(Some)
                    .ok_or_else(|| self.wrong(format!("`{digits}` is no number up to {MAX_REPEAT}"))),
            }
        };
        let inside = &rest[1..end];
        let suffix = match inside.split_once(',') {
            None => format!("{{{}}}", number(inside)?.ok_or_else(|| self.wrong("`{}` counts nothing".into()))?),
            Some((least, most)) => {
                let (least, most) = (number(least)?.unwrap_or(0), number(most)?);
                if most.is_some_and(|m| m < least) {
                    return Err(self.wrong(format!("`{{{inside}}}` ends before it begins")));
                }
                most.map_or(format!("{{{least},}}"), |most| format!("{{{least},{most}}}"))
            }
        };
        self.at += end + 1;
        Ok(suffix)
    }

    fn literal(&mut self) -> Result<()> {
        self.at += 1;
        self.out.push('(');
        let empty = self.out.len();
        while !self.rest().starts_with('"') {
            let c = self.character("a text")?;
            let _ = write!(self.out, "{}/{}/", if self.out.len() > empty { " " } else { "" }, escaped(c));
        }
        self.at += 1;
        if self.out.len() == empty {
            self.out.push_str("\"\"");
        }
        self.out.push(')');
        Ok(())
    }

    fn class(&mut self) -> Result<()> {
        self.at += 1;
        let mut class = String::new();
        let negated = self.rest().starts_with('^');
        self.at += usize::from(negated);
        while !self.rest().starts_with(']') {
            let first = self.character("a class")?;
            let range = self.rest().starts_with('-') && !self.rest().starts_with("-]");
            let last = if range {
                self.at += 1;
                self.character("a class")?
            } else {
                first
            };
            if last < first {
                return Err(self.wrong(format!("`{}-{}` ends before it begins", first.escape_debug(), last.escape_debug())));
            }
            let _ = write!(class, "{}-{}", escaped(first), escaped(last));
        }
        self.at += 1;
        match (class.is_empty(), negated) {
            (true, false) => return Err(self.wrong("`[]` allows no character".into())),
            (true, true) => self.out.push_str("/(?s:.)/"),
            (false, _) => {
                let _ = write!(self.out, "/[{}{class}]/", if negated { "^" } else { "" });
            }
        }
        Ok(())
    }

    /// One character of a text or a class, its escapes read.
    fn character(&mut self, inside: &str) -> Result<char> {
        let mut chars = self.rest().chars();
        let c = chars.next().ok_or_else(|| self.wrong(format!("the grammar ends in {inside}")))?;
        if c != '\\' {
            self.at += c.len_utf8();
            return Ok(c);
        }
        let kind = chars.next().ok_or_else(|| self.wrong(format!("the grammar ends in {inside}")))?;
        let digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let c = if digits > 0 {
            let hex = self.rest().get(2..2 + digits);
            let code = hex.and_then(|h| u32::from_str_radix(h, 16).ok());
            code.and_then(char::from_u32)
                .ok_or_else(|| self.wrong(format!("`\\{kind}` needs {digits} hexadecimal digits of a character")))?
        } else {
            match kind {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                '\\' | '"' | '[' | ']' | '-' | '^' => kind,
                _ => return Err(self.wrong(format!("`\\{}` is no escape", kind.escape_debug()))),
            }
        };
        self.at += 1 + kind.len_utf8() + digits;
        Ok(c)
    }
}

/// A character in a regular expression, in a class too.
fn escaped(c: char) -> String {
    if c.is_ascii_alphanumeric() { c.to_string() } else { format!("\\u{{{:x}}}", c as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_classes_texts_and_counts() {
        let lark =
            to_lark("# greeting\nroot ::= \"hi\" ws [a-z0-9_]+ (\"!\" | \"?\"){1,3}\n  | name-2\nws ::= [ \\t\\n]*\nname-2 ::= [^\\]x]\n")
                .expect("reads");
        let lines: Vec<&str> = lark.lines().collect();
        assert_eq!(lines[0], "start: r_root");
        assert_eq!(lines[1], r"r_root: (/h/ /i/) r_ws (/[a-z0-9\u{5f}-\u{5f}]/)+ (((/\u{21}/)  | (/\u{3f}/) )){1,3}  | r_name_2d_2 ");
        assert_eq!(lines[2], r"r_ws: (/[\u{20}-\u{20}\u{9}-\u{9}\u{a}-\u{a}]/)* ");
        assert_eq!(lines[3], r"r_name_2d_2: /[^\u{5d}-\u{5d}x-x]/ ");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        for (text, why) in [
            ("root ::= \"a", "line 1, column 12: the grammar ends in a text"),
            ("a ::= \"b\"", "no rule is called `root`"),
            ("root ::= b", "line 1, column 10: rule `b` is not defined"),
            ("root ::= \"a\"\nroot ::= \"b\"", "rule `root` is defined twice"),
            ("root ::= [z-a]", "`z-a` ends before it begins"),
            ("root ::= \"a\"{3,1}", "`{3,1}` ends before it begins"),
            ("root ::= \"a\"{9999}", "`9999` is no number up to 2000"),
            ("root : x", "line 1, column 6: expected `::=`, found `: x`"),
            ("root ::= ((((", "expected `)`"),
        ] {
            let e = to_lark(text).expect_err(text).to_string();
            assert!(e.contains(why), "{text}: {e}");
        }
        let deep = format!("root ::= {}\"a\"", "(".repeat(5000));
        assert!(to_lark(&deep).expect_err("deep").to_string().contains("nested"));
    }
}

//! `flow chat MODEL`: turns, commands, and what is sent to the model for them.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;

use flow_engine::Registry;
use flow_engine::problem::Problem;
use flow_engine::stop::Stop;
use flow_lm::Model;
use flow_lm::infer::{CHUNK, Generator, Request, Sampling, TextStream, Uses};
use flow_shaders::device;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::generate::sampling;
use crate::args::{ChatArgs, WhenFull};
use crate::failure::Failure;
use crate::models;
use crate::print::{print, say};
use crate::signals::Listening;

const HELP: &str = "\
/system TEXT       what the model is told first (without a text: nothing)
/regenerate        another answer to the last turn
/undo              forget the last turn
/clear             forget all turns
/save FILE         keep the conversation (an existing file only if a conversation is in it)
/load FILE         go on with one that was kept
/set NAME VALUE    temperature, top_k, top_p, min_p, repeat_penalty, seed, max_tokens
/quit              end (Ctrl-D too); Ctrl-C stops an answer
a line that ends in \\ goes on in the next one; \"\"\" begins and ends several lines";

/// What was said and answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Turn {
    user: String,
    answer: String,
}

/// A conversation as it is kept.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// Version of this form.
    flow_chat: u32,
    model: String,
    #[serde(default)]
    system: Option<String>,
    turns: Vec<Turn>,
}

struct Chat<'m> {
    model: &'m Model,
    name: &'m str,
    system: Option<String>,
    turns: Vec<Turn>,
    sampling: Sampling,
    max_tokens: usize,
    /// Tokens that a prompt and its answer may have together.
    room: usize,
    when_full: WhenFull,
    /// Answers so far: another one to the same turn is another draw.
    draws: u64,
}

pub fn chat(registry: &Registry, args: &ChatArgs) -> Result<u8, Failure> {
    let opened = models::open(registry, &args.model, &args.overrides)?;
    let model = &opened.model;
    let device = device::open(&args.overrides.device, args.overrides.threads.unwrap_or(0)).map_err(|e| Failure::Broken(e.to_string()))?;
    let room = args.context.unwrap_or(model.checkpoint.config.seq.min(4096)).next_multiple_of(CHUNK);
    let uses = Uses { decode: Some((1, room)), draws: true, prefill: CHUNK, ..Uses::default() };
    let mut session = models::session(&device, model, uses, args.activations)?;
    let sampling = sampling(&args.sampling);
    sampling.check(model.checkpoint.config.vocab).map_err(|e| Problem::new(e.to_string()))?;
    let mut chat = Chat {
        model,
        name: &args.model,
        system: args.system.clone(),
        turns: Vec::new(),
        sampling,
        max_tokens: args.max_tokens,
        room,
        when_full: args.when_full,
        draws: 0,
    };
    if model.template.is_none() {
        say("this model has no chat template: it continues what you write");
    }
    if std::io::stdin().is_terminal() {
        say("/help lists what else can be said; Ctrl-D ends");
    }
    chat.talk(&mut Generator::new(&mut session))
}

impl Chat<'_> {
    fn talk(&mut self, generator: &mut Generator<'_>) -> Result<u8, Failure> {
        let mut editor = DefaultEditor::new().map_err(|e| Failure::Broken(format!("the terminal: {e}")))?;
        loop {
            let Some(text) = read_turn(&mut editor)? else { return Ok(0) };
            let told = match text.strip_prefix('/') {
                Some("quit" | "exit") => return Ok(0),
                Some(command) => self.obey(command, generator),
                None if text.trim().is_empty() => Ok(()),
                None => self.answer(&text, generator),
            };
            match told {
                // What cannot be done is said, and the conversation goes on.
                Err(Failure::Wrong(problems)) => problems.list.iter().for_each(|p| {
                    say(&format!("{p}{}", p.help.as_ref().map_or(String::new(), |h| format!("\n  {h}"))));
                }),
                other => other?,
            }
        }
    }

    fn obey(&mut self, command: &str, generator: &mut Generator<'_>) -> Result<(), Failure> {
        let (name, rest) = command.split_once(char::is_whitespace).map_or((command, ""), |(name, rest)| (name, rest.trim()));
        match (name, rest) {
            ("help", _) => say(HELP),
            ("system", text) => self.system = Some(text.to_owned()).filter(|t| !t.is_empty()),
            ("undo", _) => drop(self.turns.pop().ok_or_else(|| Problem::new("there is no turn to forget"))?),
            ("clear", _) => self.turns.clear(),
            ("regenerate", _) => {
                let last = self.turns.pop().ok_or_else(|| Problem::new("there is no turn to answer again"))?;
                let result = self.answer(&last.user, generator);
                if result.is_err() {
                    self.turns.push(last);
                }
                return result;
            }
            ("save" | "load", "") => return Err(Problem::new(format!("/{name} needs a file")).into()),
            ("save", file) => return self.save(Path::new(file)),
            ("load", file) => return self.load(Path::new(file)),
            ("set", setting) => return self.set(setting),
            _ => return Err(Problem::new(format!("there is no /{name}")).help("/help lists what there is").into()),
        }
        Ok(())
    }

    fn set(&mut self, setting: &str) -> Result<(), Failure> {
        let (name, value) = setting.split_once([' ', '=']).map_or((setting, ""), |(n, v)| (n.trim(), v.trim()));
        let wrong = || Problem::new(format!("/set {setting}: `{value}` is no value of `{name}`"));
        let mut new = self.sampling.clone();
        let mut max_tokens = self.max_tokens;
        match name {
            "temperature" => new.temperature = value.parse().map_err(|_| wrong())?,
            "top_k" => new.top_k = value.parse().map_err(|_| wrong())?,
            "top_p" => new.top_p = value.parse().map_err(|_| wrong())?,
            "min_p" => new.min_p = value.parse().map_err(|_| wrong())?,
            "repeat_penalty" => new.repetition_penalty = value.parse().map_err(|_| wrong())?,
            "seed" => new.seed = value.parse().map_err(|_| wrong())?,
            "max_tokens" => max_tokens = value.parse().ok().filter(|n| *n > 0).ok_or_else(wrong)?,
            _ => {
                return Err(Problem::new(format!("nothing is called `{name}`"))
                    .help("temperature, top_k, top_p, min_p, repeat_penalty, seed, max_tokens")
                    .into());
            }
        }
        new.check(self.model.checkpoint.config.vocab).map_err(|e| Problem::new(e.to_string()))?;
        (self.sampling, self.max_tokens) = (new, max_tokens);
        Ok(())
    }

    fn save(&self, path: &Path) -> Result<(), Failure> {
        // A file that is no conversation is somebody's.
        if path.exists() && kept(path).is_err() {
            return Err(Problem::new(format!("{} exists and is no conversation", path.display())).help("name another file").into());
        }
        let all = Kept { flow_chat: 1, model: self.name.to_owned(), system: self.system.clone(), turns: self.turns.clone() };
        let write = || -> std::io::Result<()> {
            let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let mut file = tempfile::NamedTempFile::new_in(dir)?;
            writeln!(file, "{:#}", json!(all))?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        write().map_err(|e| Problem::new(format!("cannot write {}: {e}", path.display())))?;
        say(&format!("{} turns → {}", self.turns.len(), path.display()));
        Ok(())
    }

    fn load(&mut self, path: &Path) -> Result<(), Failure> {
        let all = kept(path).map_err(|why| Problem::new(format!("{}: {why}", path.display())))?;
        (self.system, self.turns) = (all.system, all.turns);
        say(&format!("{} turns, with {}", self.turns.len(), all.model));
        Ok(())
    }

    /// The prompt of a turn after those from `from` on.
    fn prompt(&self, from: usize, user: &str) -> Result<Vec<flow_lm::TokenId>, Failure> {
        let text = match &self.model.template {
            None => {
                let before = self.turns[from..].iter().flat_map(|t| [t.user.as_str(), t.answer.as_str()]);
                self.system.as_deref().into_iter().chain(before).chain([user]).collect::<String>()
            }
            Some(template) => {
                let said = |role: &str, content: &str| json!({"role": role, "content": content});
                let mut messages: Vec<_> = self.system.iter().map(|s| said("system", s)).collect();
                for turn in &self.turns[from..] {
                    messages.extend([said("user", &turn.user), said("assistant", &turn.answer)]);
                }
                messages.push(said("user", user));
                template.render(&messages, None).map_err(|e| Problem::new(e.to_string()))?
            }
        };
        Ok(self.model.tokenizer.context(&text))
    }

    /// The prompt that fits, the oldest turns gone where that is wanted.
    fn fitting(&mut self, user: &str) -> Result<Vec<flow_lm::TokenId>, Failure> {
        let mut from = 0;
        loop {
            let prompt = self.prompt(from, user)?;
            // Room for a short answer at the least.
            if prompt.len() + self.max_tokens.min(16) <= self.room {
                if from > 0 {
                    say(&format!("(the context of {} tokens is full: the oldest {from} turns are forgotten)", self.room));
                    self.turns.drain(..from);
                }
                return Ok(prompt);
            }
            if self.when_full == WhenFull::Refuse || from >= self.turns.len() {
                let problem = Problem::new(format!("the conversation has {} tokens, the context {}", prompt.len(), self.room));
                return Err(problem.help("/undo, /clear, or start with a larger --context").into());
            }
            from += 1;
        }
    }

    fn answer(&mut self, user: &str, generator: &mut Generator<'_>) -> Result<(), Failure> {
        let prompt = self.fitting(user)?;
        let request = Request {
            max_tokens: self.max_tokens.min(self.room + 1 - prompt.len()),
            prompt,
            sampling: self.sampling.clone(),
            draw: self.draws,
            ends: self.model.tokenizer.ends().to_vec(),
            ..Request::default()
        };
        self.draws += 1;
        let stop = Arc::new(Stop::default());
        let listening = Listening::of(&stop, false);
        let number = generator.join(request).map_err(|e| Problem::new(e.to_string()))?;
        let (mut stream, mut out, mut answer) = (TextStream::new(&[]), std::io::stdout(), String::new());
        while !generator.is_idle() && stop.level() == 0 {
            for event in generator.step().map_err(|e| Failure::Broken(e.to_string()))? {
                let Some(token) = event.token else { continue };
                let said = stream.push(self.model.tokenizer.token_bytes(token)).text;
                let _ = out.write_all(said.as_bytes()).and_then(|()| out.flush());
                answer.push_str(&said);
            }
        }
        generator.leave(number);
        drop(listening);
        let rest = stream.end();
        print(&rest);
        answer.push_str(&rest);
        self.turns.push(Turn { user: user.to_owned(), answer });
        Ok(())
    }
}

fn kept(path: &Path) -> Result<Kept, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read it: {e}"))?;
    let all: Kept = serde_json::from_str(&text).map_err(|e| format!("no conversation: {e}"))?;
    if all.flow_chat != 1 {
        return Err(format!("a conversation of version {}, this flow reads version 1", all.flow_chat));
    }
    Ok(all)
}

/// A turn of one or several lines; none at the end of the input.
fn read_turn(editor: &mut DefaultEditor) -> Result<Option<String>, Failure> {
    let Some(first) = read_line(editor, "> ")? else { return Ok(None) };
    let mut text = first;
    if let Some(begun) = text.strip_prefix("\"\"\"") {
        let mut lines = vec![begun.to_owned()];
        while !lines.last().is_some_and(|l| l.trim_end().ends_with("\"\"\"") && (lines.len() > 1 || !l.is_empty())) {
            let Some(line) = read_line(editor, ". ")? else { break };
            lines.push(line);
        }
        let whole = lines.join("\n");
        let whole = whole.trim_end().strip_suffix("\"\"\"").unwrap_or(&whole).trim_matches('\n').to_owned();
        return Ok(Some(whole));
    }
    while text.ends_with('\\') {
        text.pop();
        text.push('\n');
        let Some(line) = read_line(editor, ". ")? else { break };
        text.push_str(&line);
    }
    Ok(Some(text))
}

fn read_line(editor: &mut DefaultEditor, sign: &str) -> Result<Option<String>, Failure> {
    loop {
        match editor.readline(sign) {
            Ok(line) => {
                let _ = editor.add_history_entry(&line);
                return Ok(Some(line));
            }
            Err(ReadlineError::Interrupted) => say("(Ctrl-D ends)"),
            Err(ReadlineError::Eof) => return Ok(None),
            Err(e) => return Err(Failure::Broken(format!("the terminal: {e}"))),
        }
    }
}

//! `flow generate MODEL -p TEXT`.

use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::time::Instant;

use flow_engine::Registry;
use flow_engine::problem::Problem;
use flow_lm::Model;
use flow_lm::infer::{CHUNK, Constraint, Finish, Generator, Grammar, Request, Sampling, Session, TextStream, Uses, Vocabulary};
use flow_shaders::device;

use crate::args::{GenerateArgs, SamplingArgs};
use crate::failure::Failure;
use crate::models;
use crate::print::say;

pub fn generate(registry: &Registry, args: &GenerateArgs) -> Result<u8, Failure> {
    let sampling = sampling(&args.sampling);
    // Before the model is read: what is wrong with the command line is said at once.
    let text = prompt(args)?;
    let grammar = grammar(args)?;
    let opened = models::open(registry, &args.model, &args.overrides)?;
    let model = &opened.model;
    let prompt = model.tokenizer.context(&text);
    let room = args.context.unwrap_or(model.checkpoint.config.seq);
    if prompt.len() >= room {
        let problem = Problem::new(format!("the prompt has {} tokens, the context {room}, one of them for the answer", prompt.len()));
        return Err(problem.help("shorten it, or give more with --context").into());
    }
    let max_tokens = args.max_tokens.min(room + 1 - prompt.len());
    let constraint = grammar.map(|g| compile(model, &g)).transpose()?;
    let device = device::open(&args.overrides.device, args.overrides.threads.unwrap_or(0)).map_err(|e| Failure::Broken(e.to_string()))?;
    let room = (prompt.len() - 1).next_multiple_of(CHUNK).max(prompt.len() + max_tokens);
    let uses = Uses { decode: Some((1, room)), draws: true, prefill: CHUNK, ..Uses::default() };
    let mut session = models::session(&device, model, uses, args.activations)?;
    let request = Request { prompt, max_tokens, sampling, constraint, ends: model.tokenizer.ends().to_vec(), ..Request::default() };
    speak(&mut session, model, request, &args.stop)
}

/// Prints a continuation as it comes.
fn speak(session: &mut Session, model: &Model, request: Request, stop: &[String]) -> Result<u8, Failure> {
    let (read, began) = (request.prompt.len(), Instant::now());
    let mut generator = Generator::new(session);
    generator.join(request).map_err(|e| Failure::from(Problem::new(e.to_string())))?;
    let (mut stream, mut out) = (TextStream::new(stop), std::io::stdout());
    let (mut first, mut tokens, mut finish) = (None, 0u32, None);
    'steps: while !generator.is_idle() {
        for event in generator.step().map_err(|e| Failure::Broken(e.to_string()))? {
            finish = event.finish;
            let Some(token) = event.token else { continue };
            tokens += 1;
            first.get_or_insert_with(|| began.elapsed());
            let said = stream.push(model.tokenizer.token_bytes(token));
            // A reader that went away (`| head`) has heard enough.
            if out.write_all(said.text.as_bytes()).and_then(|()| out.flush()).is_err() || said.stopped {
                break 'steps;
            }
        }
    }
    let _ = out.write_all(stream.end().as_bytes());
    let _ = out.flush();
    if out.is_terminal() {
        let _ = writeln!(out);
        let first = first.unwrap_or_else(|| began.elapsed()).as_secs_f64();
        let rate = f64::from(tokens.saturating_sub(1)) / (began.elapsed().as_secs_f64() - first).max(1e-9);
        say(&format!("{read} tokens read, the first answered after {first:.2} s, {tokens} tokens at {rate:.1} tokens/s"));
    }
    if finish == Some(Finish::Stuck) {
        say("error: the grammar could not be followed further: the answer is not complete");
        return Ok(1);
    }
    Ok(0)
}

/// The rule that the arguments mean.
pub fn sampling(a: &SamplingArgs) -> Sampling {
    Sampling {
        temperature: a.temperature,
        top_k: a.top_k,
        top_p: a.top_p,
        min_p: a.min_p,
        repetition_penalty: a.repeat_penalty,
        seed: a.seed,
        ..Sampling::default()
    }
}

fn prompt(args: &GenerateArgs) -> Result<String, Failure> {
    match (&args.prompt, &args.file) {
        (Some(text), _) => Ok(text.clone()),
        (None, Some(path)) if path.as_os_str() != "-" => read(path),
        (None, file) => {
            if file.is_none() && std::io::stdin().is_terminal() {
                return Err(Problem::new("there is no prompt").help("give one with -p TEXT or --file FILE, or on standard input").into());
            }
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|e| Problem::new(format!("the prompt on standard input: {e}")))?;
            Ok(text)
        }
    }
}

fn grammar(args: &GenerateArgs) -> Result<Option<Grammar>, Failure> {
    if let Some(path) = &args.json_schema {
        let schema = serde_json::from_str(&read(path)?).map_err(|e| Problem::new(format!("{}: not JSON: {e}", path.display())))?;
        return Ok(Some(Grammar::Schema(schema)));
    }
    args.grammar.as_ref().map(|path| read(path).map(Grammar::Gbnf)).transpose()
}

fn read(path: &Path) -> Result<String, Failure> {
    Ok(std::fs::read_to_string(path).map_err(|e| Problem::new(format!("cannot read {}: {e}", path.display())))?)
}

/// A grammar over the model's tokens.
fn compile(model: &Model, grammar: &Grammar) -> Result<Constraint, Failure> {
    let vocabulary = Vocabulary::new(&model.tokenizer, model.checkpoint.config.vocab);
    let compiled = vocabulary.and_then(|v| v.compile(grammar));
    Ok(compiled.map_err(|e| Problem::new(e.to_string()))?)
}

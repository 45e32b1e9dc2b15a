//! `flow eval MODEL [--against MODEL] --text FILE`.

use std::io::IsTerminal;

use flow_engine::Registry;
use flow_engine::plugin::StageError;
use flow_engine::problem::Problem;
use flow_lm::infer::Takes;
use flow_shaders::device;
use flow_stages::eval::against::{self, Comparison, How, OfModel};

use crate::args::EvalArgs;
use crate::failure::Failure;
use crate::models;
use crate::print::{print, say};

pub fn eval(registry: &Registry, args: &EvalArgs) -> Result<u8, Failure> {
    let path = args.text.display();
    let bytes = std::fs::read(&args.text).map_err(|e| Failure::from(Problem::new(format!("cannot read {path}: {e}"))))?;
    let text = String::from_utf8(bytes).map_err(|e| Failure::from(Problem::new(format!("{path}: not UTF-8: {e}"))))?;
    let model = models::open(registry, &args.model, &args.overrides)?;
    let other = args.against.as_ref().map(|m| models::open(registry, m, &args.overrides)).transpose()?;
    let device = device::open(&args.overrides.device, args.overrides.threads.unwrap_or(0)).map_err(|e| Failure::Broken(e.to_string()))?;
    let other_takes = args.against_activations.or_else(|| {
        let both = args.activations.filter(|a| matches!(a, Takes::Codes(_)));
        both.filter(|_| other.as_ref().is_some_and(|o| o.model.checkpoint.config.quantises()))
    });
    let how = How { context: args.context, takes: args.activations, against: other_takes };
    let shown = std::io::stderr().is_terminal() && !args.json;
    let mut tell = |done: usize, all: usize| {
        if shown && (done == all || done.is_multiple_of(8)) {
            say(&format!("{done} of {all} windows"));
        }
    };
    let failed = |e: StageError| {
        let problem = Problem::new(e.message);
        Failure::from(match e.help {
            Some(help) => problem.help(help),
            None => problem,
        })
    };
    let json = |value: serde_json::Result<String>| value.map_err(|e| Failure::Broken(e.to_string()));
    match &other {
        None => {
            let of = against::alone(&device, &model.model, &text, how, &mut tell).map_err(failed)?;
            print(&if args.json { json(serde_json::to_string(&of))? } else { alone(&of) });
        }
        Some(other) => {
            let found = against::compare(&device, (&model.model, &other.model), &text, how, &mut tell).map_err(failed)?;
            print(&if args.json { json(serde_json::to_string(&found))? } else { compared(&found) });
        }
    }
    Ok(0)
}

fn alone(of: &OfModel) -> String {
    format!(
        "bits per byte  {:.4}\nperplexity     {:.4}\nscored         {} tokens, {} bytes",
        of.bits_per_byte, of.perplexity, of.tokens, of.bytes
    )
}

fn compared(c: &Comparison) -> String {
    let row = |name: &str, a: String, b: String| format!("{name:<22}{a:>12}{b:>12}");
    let (per, unit) = if c.same_tokenizer { ("", "token") } else { (", for a byte", "token of the model") };
    let kl =
        c.kl_median.zip(c.kl_99).map_or(", Top-K + Other where bytes align".to_owned(), |(m, n)| format!(", median {m:.6}, 99 % {n:.4}"));
    [
        row("", "model".into(), "against".into()),
        row("bits per byte", format!("{:.4}", c.model.bits_per_byte), format!("{:.4}", c.against.bits_per_byte)),
        row("perplexity of a token", format!("{:.4}", c.model.perplexity), format!("{:.4}", c.against.perplexity)),
        row("tokens scored", c.model.tokens.to_string(), c.against.tokens.to_string()),
        format!("perplexity ratio{per}: {:.4}", c.perplexity_ratio),
        format!("KL from the other, nats a {unit}: {:.6}{kl}", c.kl),
        format!("same most likely token: {:.2} % of {}", 100.0 * c.top1_agreement, c.compared),
    ]
    .join("\n")
}

//! `flow convert IN OUT`.

use std::io;
use std::path::Path;

use flow_engine::problem::Problem;
use flow_lm::chat::ChatTemplate;
use flow_lm::format::gguf::GgufFile;
use flow_lm::format::gguf::export::{About, How, Storage, export, fitting};
use flow_lm::format::hf_export::{self, FloatType};
use flow_lm::format::tokenizer_file::TokenizerFile;
use flow_lm::format::{Checkpoint, load};
use flow_stages::card::{CARD, Card, Made, Said};
use flow_stages::kinds::export_gguf::wide;

use crate::args::{ConvertArgs, Type};
use crate::failure::Failure;
use crate::models;
use crate::print::say;

/// A model with all that goes along.
struct Source {
    model: Checkpoint,
    tokenizer: TokenizerFile,
    template: Option<ChatTemplate>,
    about: About,
}

pub fn convert(args: &ConvertArgs) -> Result<u8, Failure> {
    let to_gguf = args.to.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    check(args, to_gguf)?;
    let source = read(args).map_err(failed)?;
    let bytes = if to_gguf { gguf(args, &source)? } else { directory(args, &source)? };
    say(&format!("{}: {bytes} bytes of weights", args.to.display()));
    Ok(0)
}

/// What is wrong with the command line or the place, before anything is read.
fn check(args: &ConvertArgs, to_gguf: bool) -> Result<(), Failure> {
    let to = args.to.display();
    let fits = matches!((args.ty, to_gguf), (None, _) | (Some(Type::Gguf(_)), true) | (Some(Type::Float(_)), false));
    if !fits {
        let (what, types) =
            if to_gguf { ("a GGUF file", "q2_0, tq2_0, tq1_0, q8_0, f16, f32") } else { ("a directory", "bfloat16, float32") };
        return Err(Problem::new(format!("--type: {to} is {what}, whose types are {types}")).into());
    }
    if !to_gguf && (args.embedding.is_some() || args.head.is_some()) {
        return Err(Problem::new("--embedding and --head are for GGUF files").help("a directory has one type: --type").into());
    }
    if args.to.symlink_metadata().is_err() {
        return Ok(());
    }
    if !args.force {
        return Err(Problem::new(format!("{to} is there already")).help("name another place, or replace it with --force").into());
    }
    // What is replaced is a model, never a folder of other things.
    let replaceable = if to_gguf { !args.to.is_dir() } else { args.to.join("config.json").is_file() };
    if !replaceable {
        return Err(Problem::new(format!("{to} is something else than a model: it is not replaced")).help("name another place").into());
    }
    if to_gguf {
        return Ok(());
    }
    if within(&args.from, &args.to) {
        return Err(Problem::new(format!("{} lies in {to}, which would be replaced", args.from.display()))
            .help("name another place")
            .into());
    }
    match foreign(&args.to).map_err(|e| cannot(&args.to, &e))? {
        None => Ok(()),
        Some(name) => {
            let problem = Problem::new(format!("{to} holds `{name}`, which no conversion writes: it is not replaced"));
            Err(problem.help("move it away, or name another place").into())
        }
    }
}

/// Whether a path lies in a folder, and is not the folder itself.
fn within(path: &Path, folder: &Path) -> bool {
    let (path, folder) = (path.canonicalize(), folder.canonicalize());
    matches!((path, folder), (Ok(path), Ok(folder)) if path != folder && path.starts_with(&folder))
}

/// What of a folder is no part of a model as it is written here.
fn foreign(folder: &Path) -> io::Result<Option<String>> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !hf_export::FILES.contains(&name.as_str()) && name != CARD || entry.file_type()?.is_dir() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn read(args: &ConvertArgs) -> flow_lm::Result<Source> {
    let model = load(&args.from)?;
    let tokenizer = TokenizerFile::of_model(&args.from, &model)?;
    let template = ChatTemplate::of(&args.from, &tokenizer.tokenizer)?;
    let mut about = About { name: models::name(&args.from.display().to_string()), author: None, licence: None };
    if args.from.is_file() {
        let file = GgufFile::read(&args.from)?;
        let text = |key: &str| file.text(&format!("general.{key}")).map(|t| t.map(str::to_owned));
        about = About { name: text("name")?.unwrap_or(about.name), author: text("author")?, licence: text("license")? };
    }
    about.name = args.name.clone().unwrap_or(about.name);
    about.author = args.author.clone().or(about.author);
    about.licence = args.licence.clone().or(about.licence);
    Ok(Source { model, tokenizer, template, about })
}

fn gguf(args: &ConvertArgs, source: &Source) -> Result<u64, Failure> {
    let (linear, embedding, head) = fitting(&source.model);
    let asked = match args.ty {
        Some(Type::Gguf(storage)) => Some(storage),
        _ => None,
    };
    // A matrix that is ternary goes with the linears where those are stored so; else what was asked for floats counts.
    let with_linears = |own: Storage| match asked {
        Some(storage) if own.is_ternary() && storage.is_ternary() => storage,
        Some(storage) if !storage.is_ternary() => {
            if storage == Storage::F32 {
                storage
            } else {
                Storage::F16
            }
        }
        _ => own,
    };
    let how = How {
        about: source.about.clone(),
        template: source.template.as_ref().map(ChatTemplate::source),
        linear: asked.unwrap_or(linear),
        embedding: args.embedding.unwrap_or_else(|| with_linears(embedding)),
        head: args.head.or(head.map(with_linears)),
    };
    let mut builder = temporary();
    ordinary(&mut builder);
    let file = builder.tempfile_in(parent(&args.to)).map_err(|e| cannot(&args.to, &e))?;
    let made = export(&source.model, &source.tokenizer, &how, file.path()).map_err(failed)?;
    file.as_file().sync_all().map_err(|e| cannot(&args.to, &e))?;
    let kept = if args.force { file.persist(&args.to) } else { file.persist_noclobber(&args.to) };
    kept.map_err(|e| cannot(&args.to, &e.error))?;
    if let Some(warning) = wide(&made) {
        say(&format!("warning: {warning}"));
    }
    Ok(made.tensor_bytes)
}

fn directory(args: &ConvertArgs, source: &Source) -> Result<u64, Failure> {
    let dtype = match args.ty {
        Some(Type::Float(dtype)) => dtype,
        _ => FloatType::default(),
    };
    let dir = temporary().tempdir_in(parent(&args.to)).map_err(|e| cannot(&args.to, &e))?;
    let made = dir.path().join("model");
    let template = source.template.as_ref().map(ChatTemplate::source);
    let bytes = hf_export::export(&source.model, &source.tokenizer, template, dtype, &made).map_err(failed)?;
    let card = Card {
        said: Said {
            name: Some(source.about.name.clone()),
            author: source.about.author.clone(),
            licence: source.about.licence.clone(),
            ..Said::default()
        },
        model: &source.model,
        storage: (dtype, bytes),
        chat: template.is_some(),
        made: Made::Command(format!("flow convert {} {} --type {}", last(&args.from), last(&args.to), dtype.name())),
        report: None,
    };
    let put = || -> io::Result<()> {
        std::fs::write(made.join(CARD), card.text())?;
        for entry in std::fs::read_dir(&made)? {
            std::fs::File::open(entry?.path())?.sync_all()?;
        }
        if args.force && args.to.symlink_metadata().is_ok() {
            // Moved away first: there is never half of two models.
            let before = dir.path().join("before");
            std::fs::rename(&args.to, &before)?;
            return std::fs::rename(&made, &args.to).inspect_err(|_| {
                // Back where it was: what is left in the temporary folder goes with it.
                let _ = std::fs::rename(&before, &args.to);
            });
        }
        std::fs::rename(&made, &args.to)
    };
    put().map_err(|e| cannot(&args.to, &e))?;
    Ok(bytes)
}

/// Beside the place, so that it gets its name by a rename.
fn temporary() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".flow-convert-");
    builder
}

/// With the permissions that other new files have.
#[cfg(unix)]
fn ordinary(builder: &mut tempfile::Builder<'_, '_>) {
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
}

#[cfg(not(unix))]
fn ordinary(_: &mut tempfile::Builder<'_, '_>) {}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A path without the folders of this machine.
fn last(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn cannot(to: &Path, e: &io::Error) -> Failure {
    Problem::new(format!("cannot write {}: {e}", to.display())).into()
}

fn failed(e: flow_lm::Error) -> Failure {
    let problem = Problem::new(e.to_string());
    match e.help {
        Some(help) => problem.help(help).into(),
        None => problem.into(),
    }
}

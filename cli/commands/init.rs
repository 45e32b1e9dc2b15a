//! `flow init`: a commented starter pipeline.

use flow_engine::problem::Problem;

use crate::args::{InitArgs, Template};
use crate::failure::Failure;
use crate::print::print;

const SHELL: &str = include_str!("templates/shell.yaml");
const MODEL: &str = include_str!("templates/model.yaml");

pub fn init(args: &InitArgs) -> Result<u8, Failure> {
    let text = match args.template {
        Template::Shell => SHELL,
        Template::Model => MODEL,
    };
    let shown = args.path.display();
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).create_new(true).open(&args.path) {
        Ok(mut file) => {
            use std::io::Write;
            file.write_all(text.as_bytes()).map_err(|e| Failure::Broken(format!("write {shown}: {e}")))?;
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Problem::new(format!("{shown} exists already")).help("give another path: flow init other.yaml").into());
        }
        Err(e) => return Err(Failure::Broken(format!("create {shown}: {e}"))),
    }
    print(&format!("wrote {shown}; next: flow plan {shown}, then flow run {shown}"));
    Ok(0)
}

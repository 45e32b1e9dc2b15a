//! Whatever stands in a file that somebody else wrote: the readers answer or refuse, and never panic, hang or eat memory.
//!
//! Seeds are valid files; each case cuts, doubles, swaps and overwrites parts of one. `.ci/soak` runs many more cases, and the same
//! functions as targets of `cargo fuzz` where there is a nightly compiler (`tests/fuzz`).

#[path = "fuzz/mod.rs"]
mod fuzz;

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use fuzz::TARGETS;
use fuzz::bodies::Came;
use proptest::prelude::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[derive(Clone, Debug)]
enum Edit {
    Cut(usize, usize),
    Double(usize, usize),
    Put(usize, usize),
    Byte(usize, u8),
    /// A letter or digit in the place of one.
    Alike(usize, u8),
    /// A number that is too large, in so many bytes.
    Number(usize, usize, usize),
    /// The same in digits, in the place of the next ones.
    Digits(usize, usize),
    End(usize),
}

/// Numbers at which counts, offsets and sizes turn over.
const NUMBERS: [u64; 10] = [0, 1, 1 << 20, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 27, 1 << 40, u64::MAX >> 1, u64::MAX];

/// Places are drawn from the beginning of a file, where it says what it is, as often as from all of it.
fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let place = || prop_oneof![0usize..1024, 0usize..8192, 0usize..1 << 20];
    let one = prop_oneof![
        1 => (place(), 0usize..40).prop_map(|(at, n)| Edit::Cut(at, n)),
        1 => (place(), 0usize..200).prop_map(|(at, n)| Edit::Double(at, n)),
        1 => (place(), 0usize..64).prop_map(|(at, p)| Edit::Put(at, p)),
        1 => (place(), any::<u8>()).prop_map(|(at, b)| Edit::Byte(at, b)),
        3 => (place(), any::<u8>()).prop_map(|(at, b)| Edit::Alike(at, b)),
        1 => (place(), 0..NUMBERS.len(), prop_oneof![Just(4usize), Just(8)]).prop_map(|(at, n, width)| Edit::Number(at, n, width)),
        2 => (place(), 0..NUMBERS.len()).prop_map(|(at, n)| Edit::Digits(at, n)),
        1 => place().prop_map(Edit::End),
    ];
    prop::collection::vec(one, 1..4)
}

fn edited(seed: &[u8], edits: &[Edit], pieces: &[&[u8]]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for edit in edits {
        let len = bytes.len().max(1);
        let within = |at: usize, n: usize| (at % len).min(bytes.len())..(at % len + n).min(bytes.len());
        match *edit {
            Edit::Cut(at, n) => drop(bytes.drain(within(at, n))),
            Edit::Double(at, n) => {
                let (place, part) = (within(at, 0), bytes[within(at, n)].to_vec());
                bytes.splice(place, part);
            }
            Edit::Put(at, piece) => drop(bytes.splice(within(at, 0), pieces[piece % pieces.len()].iter().copied())),
            Edit::Byte(at, b) => {
                if let Some(slot) = bytes.get_mut(at % len) {
                    *slot = b;
                }
            }
            Edit::Alike(at, b) => {
                if let Some(slot) = bytes.get_mut(at % len) {
                    *slot = match *slot {
                        b'0'..=b'9' => b'0' + b % 10,
                        b'a'..=b'z' => b'a' + b % 26,
                        other => other ^ (b & 1),
                    };
                }
            }
            Edit::Number(at, n, width) => {
                let place = within(at, width);
                let number = &NUMBERS[n].to_le_bytes()[..place.len()];
                bytes[place].copy_from_slice(number);
            }
            Edit::Digits(at, n) => {
                let from = (at % len).min(bytes.len());
                let is_digit = |b: &u8| b.is_ascii_digit();
                if let Some(start) = bytes[from..].iter().position(is_digit).map(|i| from + i) {
                    let digits = bytes[start..].iter().take_while(|b| is_digit(b)).count();
                    bytes.splice(start..start + digits, NUMBERS[n].to_string().into_bytes());
                }
            }
            Edit::End(at) => bytes.truncate(at % len),
        }
    }
    bytes
}

/// A case takes so long and so much at the most; a process that asks the system for far more ends there.
const LONGEST: Duration = Duration::from_secs(5);
const MOST_MEMORY: u64 = 768 << 20;
const LIMIT: u64 = 6 << 30;

fn limited() {
    static ONCE: LazyLock<()> = LazyLock::new(|| {
        let limits = Rlimit { current: Some(LIMIT), maximum: getrlimit(Resource::As).maximum };
        setrlimit(Resource::As, limits).expect("sets a limit");
    });
    LazyLock::force(&ONCE);
}

/// Runs one case; how far it came.
fn run(name: &str, body: fn(&[u8]) -> Came, data: &[u8]) -> Came {
    let began = Instant::now();
    let came = body(data);
    assert!(began.elapsed() < LONGEST, "{name}: took {:?}", began.elapsed());
    let peak = flow_engine::memory::resident().map_or(0, |r| r.peak);
    assert!(peak < MOST_MEMORY, "{name}: {} MiB in memory", peak >> 20);
    came
}

fn target(name: &str) -> fuzz::Target {
    TARGETS.into_iter().find(|t| t.0 == name).expect("a target")
}

/// Changes valid files; most must be refused, and some must come all the way through for the change to have been a small one.
fn mutated(name: &str) {
    limited();
    let (_, seeds, body) = target(name);
    let (seeds, pieces) = (seeds(), fuzz::seeds::pieces(name));
    for (i, seed) in seeds.iter().enumerate() {
        run(&format!("{name}, seed {i}"), body, seed);
    }
    let (mut through, mut cases) = (0u32, 0u32);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = prop::test_runner::TestRunner::new(config);
    let counted = std::cell::RefCell::new((&mut through, &mut cases));
    let outcome = runner.run(&(0..seeds.len(), edits()), |(seed, edits)| {
        let came = run(name, body, &edited(&seeds[seed], &edits, pieces));
        let mut counted = counted.borrow_mut();
        *counted.0 += u32::from(came == Came::Through);
        *counted.1 += 1;
        Ok(())
    });
    if let Err(e) = outcome {
        panic!("{name}: {e}");
    }
    println!("{name}: {through} of {cases} came through");
    assert!(through * 50 >= cases, "{name}: {through} of {cases} cases came through: nothing behind the door is tried");
}

#[test]
fn every_seed_is_what_it_should_be() {
    for (name, seeds, body) in TARGETS {
        let came: Vec<Came> = seeds().iter().map(|seed| run(name, body, seed)).collect();
        let refused: Vec<usize> = (0..came.len()).filter(|i| came[*i] == Came::Refused).collect();
        // A pipeline with a tag and a key that mean nothing, an answer that is an error.
        let expected: &[usize] = match name {
            "yaml" => &[3],
            "answers" => &[11],
            _ => &[],
        };
        assert_eq!(refused, expected, "{name}");
    }
}

#[test]
fn gguf() {
    mutated("gguf");
}

#[test]
fn safetensors() {
    mutated("safetensors");
}

#[test]
fn tokenizer() {
    mutated("tokenizer");
}

#[test]
fn answers() {
    mutated("answers");
}

#[test]
fn yaml() {
    mutated("yaml");
}

#[test]
fn task_results() {
    mutated("task_results");
}

/// Cases that earlier versions fell over, kept as they were found.
#[test]
fn what_was_found_before() {
    limited();
    let words = String::from_utf8(fuzz::seeds::tokenizer().remove(1)).expect("text");
    let far = words.replace("\"the\":1", "\"the\":4294967295");
    let broken = words.replace("\"prefix\":\"##\"", "\"prefix\":\"\\ud800\"");
    assert!(far != words && broken != words);
    let found: [(&str, &[u8]); 4] = [
        // An id for which a table of 64 GiB was made, and a decoder that is no JSON, at which the library panicked.
        ("tokenizer", far.as_bytes()),
        ("tokenizer", broken.as_bytes()),
        // A place within a character.
        ("yaml", "a\n#\né".as_bytes()),
        ("yaml", b"flow: 1\nbase: &b { use: data.text }\nstages:\n  a: { <<: *b }\n# \xfc\x80n\n"),
    ];
    for (name, data) in found {
        assert_eq!(run(name, target(name).2, data), Came::Refused, "{name}");
    }
}

proptest! {
    #[test]
    fn pipelines_of_anything(text in "[ -~\n\t{}\\[\\]:&*!|>%@`'\"#,?$é-]{0,300}") {
        run("yaml", target("yaml").2, text.as_bytes());
    }
}

/// Writes the seeds to `FLOW_CORPUS/TARGET/N`, where coverage-guided runs begin.
#[test]
fn corpus() {
    let Some(dir) = std::env::var_os("FLOW_CORPUS") else { return };
    for (name, seeds, _) in TARGETS {
        let dir = std::path::Path::new(&dir).join(name);
        std::fs::create_dir_all(&dir).expect("a folder");
        for (i, seed) in seeds().iter().enumerate() {
            std::fs::write(dir.join(i.to_string()), seed).expect("writes");
        }
    }
}

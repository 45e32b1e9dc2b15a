//! How many small answers a second the journal takes in, each on disk before it counts; then how many are there.
//!
//! `cargo run --release -p flow-stages --example journal -- [ANSWERS [IN_FLIGHT [BYTES [DIR]]]]`

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use flow_stages::teacher::journal::{AnswerKey, Journal};

fn key(n: u32) -> AnswerKey {
    AnswerKey(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn main() {
    let mut args = std::env::args().skip(1);
    let mut number = |default: u32| args.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (answers, in_flight, bytes) = (number(200_000), number(256), number(200));
    let dir = args.next().map_or_else(|| std::env::temp_dir().join(format!("flow-journal-{}", std::process::id())), PathBuf::from);
    let body = vec![b'a'; bytes as usize];
    let journal = Arc::new(Journal::open(&dir).expect("a directory to write to"));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("a runtime");
    let next = Arc::new(AtomicU32::new(0));
    let start = Instant::now();
    runtime.block_on(async {
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..in_flight {
            let (journal, next, body) = (journal.clone(), next.clone(), body.clone());
            all.spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= answers {
                        return;
                    }
                    journal.append(key(n), &body, 1).await.expect("an answer on disk");
                }
            });
        }
        while let Some(done) = all.join_next().await {
            done.expect("a task");
        }
    });
    let seconds = start.elapsed().as_secs_f64();
    drop(journal);
    let start = Instant::now();
    let again = Journal::open(&dir).expect("the journal");
    let lost = (0..answers).filter(|n| again.get(&key(*n)).expect("readable").is_none()).count();
    println!(
        "{:.0} answers/s ({answers} of {bytes} bytes, {in_flight} in flight, fsync before each counts), lost {lost}",
        f64::from(answers) / seconds
    );
    println!("{:.0} answers/s opened and read again", f64::from(answers) / start.elapsed().as_secs_f64());
    let _ = std::fs::remove_dir_all(&dir);
}

//! Projected traces as training windows, read shard by shard.

use std::ops::Range;

use flow_engine::plugin::StageError;
use flow_lm::tokenizer::{TokenId, Tokenizer};
use flow_lm::train::windows::{Said, Token};
use flow_lm::train::{Loader, Shards, Windows};

use super::tau::Distillation;
use crate::traces::{Origin, ProjectedRow, SequenceRow, TraceReader};

/// Rows that train by KL, and those of them whose tail at τ is exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tails {
    /// Rows that train by KL.
    pub rows: u64,
    /// Those whose tail is exact.
    pub exact: u64,
}

impl Tails {
    /// Their share; 1 where no row trains by KL.
    pub fn share(&self) -> f64 {
        if self.rows == 0 { 1.0 } else { self.exact as f64 / self.rows as f64 }
    }
}

/// Sizes of everything that an epoch visits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Targets in all windows.
    pub targets: u64,
    /// Tokens at the ends of sequences that are in no window.
    pub left_out: u64,
    /// What rows hold of their tails at τ.
    pub tails: Tails,
}

/// The windows of traces.
struct TraceWindows<'a> {
    reader: TraceReader<ProjectedRow>,
    tokenizer: &'a Tokenizer,
    seq: usize,
    distillation: Distillation,
    /// Sequences of each shard.
    sequences: Vec<Range<usize>>,
    /// Windows of each shard.
    windows: Vec<u64>,
}

/// Windows of `seq` tokens over projected traces, tempered, and their sizes; reads the traces once to know these.
pub fn windows_of_traces<'a>(
    reader: TraceReader<ProjectedRow>,
    tokenizer: &'a Tokenizer,
    seq: usize,
    distillation: Distillation,
    seed: u64,
) -> Result<(Loader<'a, StageError>, Totals), StageError> {
    if reader.meta().vocab != tokenizer.vocab_size() {
        return Err(StageError::new(format!(
            "the traces were projected onto a vocabulary of {}, the student's tokenizer has {}",
            reader.meta().vocab,
            tokenizer.vocab_size()
        ))
        .help("give `kd.project` and `train.bitnet` the same `tokenizer`; a program of its own writes `vocab` into meta.json"));
    }
    let mut counting = empty(&reader, tokenizer, seq);
    let mut places = vec![0..0; reader.shards()];
    let mut windows = vec![0; reader.shards()];
    let mut totals = Totals::default();
    let mut sequences = reader.sequences()?;
    let mut n = 0;
    while let Some(item) = sequences.next() {
        let (sequence, rows) = item?;
        let at = sequences.shard();
        if let Some(place) = places.get_mut(at) {
            *place = if place.end == 0 { n..n + 1 } else { place.start..n + 1 };
            n += 1;
            let tails = add(&mut counting, &sequence, &rows, distillation);
            totals.tails.rows += tails.rows;
            totals.tails.exact += tails.exact;
            windows[at] += counting.len() as u64;
            totals.targets += counting.targets();
            totals.left_out += counting.left_out();
            counting.clear();
        }
    }
    let top_k = counting.top_k();
    let traces = TraceWindows { reader, tokenizer, seq, distillation, sequences: places, windows };
    Ok((Loader::of_shards(traces, top_k, seed), totals))
}

fn empty(reader: &TraceReader<ProjectedRow>, tokenizer: &Tokenizer, seq: usize) -> Windows {
    Windows::new(seq, tokenizer.bos(), reader.meta().top_k.max(1))
}

/// Adds the windows of a sequence; what its rows hold of their tails. They begin where the teacher's began; a prompt's tokens
/// are read and not learned.
fn add(windows: &mut Windows, sequence: &SequenceRow, rows: &[ProjectedRow], distillation: Distillation) -> Tails {
    let mut tokens: Vec<Token> = Vec::with_capacity(rows.len());
    if sequence.source != Origin::Text {
        tokens.extend(sequence.context_ids.iter().flatten().map(|id| Token { id: TokenId(*id as u32), target: false, row: None }));
    }
    let mut tails = Tails::default();
    for row in rows {
        let tail = distillation.tail(row);
        let said = Said { ids: &row.topk_ids, other: tail.lse, weight: row.kd_weight, structural: row.is_struct };
        let kept = windows.keep(said, distillation.candidates(row));
        // A quarantined row has no tail to be exact about.
        if row.kd_weight > 0.0 {
            tails.rows += 1;
            tails.exact += u64::from(tail.exact);
        }
        tokens.push(Token { id: TokenId(row.sample_id as u32), target: true, row: Some(kept) });
    }
    windows.sequence(&tokens);
    tails
}

impl Shards<StageError> for TraceWindows<'_> {
    fn windows(&self) -> &[u64] {
        &self.windows
    }
    fn read(&self, shards: &[u32]) -> Result<Windows, StageError> {
        let mut windows = empty(&self.reader, self.tokenizer, self.seq);
        for shard in shards {
            for item in self.reader.part(*shard as usize, self.sequences[*shard as usize].clone())? {
                let (sequence, rows) = item?;
                add(&mut windows, &sequence, &rows, self.distillation);
            }
        }
        Ok(windows)
    }
}

//! Whole traces through a projection, on all cores and in bounded memory.

use std::sync::mpsc::sync_channel;

use flow_engine::plugin::{StageError, TaskContext};
use rayon::prelude::*;

use super::sequence::Projector;
use super::stats::Tally;
use crate::traces::{CANDIDATES_OF_A_ROW, ProjectedRow, RawRow, SequenceRow, TraceReader, TraceWriter};

/// Rows that go through the pool at once.
const CHUNK_ROWS: usize = 16_384;

type Raw = Vec<(SequenceRow, Vec<RawRow>)>;
type Done = Vec<(SequenceRow, Vec<ProjectedRow>, Tally)>;

/// Reads, projects and writes at once; order and result do not depend on threads, memory not on the size.
pub fn stream(
    reader: &TraceReader<RawRow>,
    projector: &Projector<'_>,
    mut writer: TraceWriter<ProjectedRow>,
    ctx: &TaskContext,
) -> Result<Tally, StageError> {
    let total = reader.counts().rows;
    let sequences = reader.sequences()?;
    std::thread::scope(|scope| {
        let (send_raw, raw) = sync_channel::<Result<Raw, StageError>>(2);
        scope.spawn(move || {
            let (mut chunk, mut rows, mut candidates) = (Vec::new(), 0, 0);
            for item in sequences {
                match item {
                    Ok(item) => {
                        rows += item.1.len();
                        candidates += item.1.iter().map(|r| r.topk_ids.len()).sum::<usize>();
                        chunk.push(item);
                    }
                    Err(e) => {
                        let _ = send_raw.send(Err(e));
                        return;
                    }
                }
                if rows >= CHUNK_ROWS || candidates >= CHUNK_ROWS * CANDIDATES_OF_A_ROW {
                    (rows, candidates) = (0, 0);
                    // The receiver hangs up after an error of its own.
                    if send_raw.send(Ok(std::mem::take(&mut chunk))).is_err() {
                        return;
                    }
                }
            }
            let _ = send_raw.send(Ok(chunk));
        });
        let (send_done, done) = sync_channel::<Done>(2);
        let writing = scope.spawn(move || {
            let mut tally = Tally::default();
            for chunk in done {
                for (sequence, rows, one) in chunk {
                    tally.merge(&one);
                    writer.push(sequence, rows)?;
                }
            }
            writer.finish().map(|_| tally)
        });
        let mut read = 0;
        let mut failure = None;
        for chunk in raw {
            if ctx.should_stop() {
                failure = Some(StageError::interrupted());
                break;
            }
            match chunk {
                Ok(chunk) => {
                    read += chunk.iter().map(|s| s.1.len() as u64).sum::<u64>();
                    let projected: Done = chunk.into_par_iter().map(|(s, rows)| projector.project(s, &rows)).collect();
                    if send_done.send(projected).is_err() {
                        break;
                    }
                    ctx.progress(read, total, "rows");
                }
                Err(e) => {
                    failure = Some(e);
                    break;
                }
            }
        }
        drop(send_done);
        let written = writing.join().unwrap_or_else(|_| Err(StageError::new("the writer of projected traces panicked")));
        failure.map_or(written, Err)
    })
}

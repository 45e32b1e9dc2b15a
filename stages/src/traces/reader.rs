//! Reads traces sequence by sequence.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flow_engine::plugin::StageError;

use super::meta::MetaFile;
use super::meta::{TraceCounts, TraceMeta};
use super::parquet::{ADVICE, Batches, Part, corrupt, unreadable};
use super::rows::SequenceRow;
use super::schema::{self, Door, TraceRow};
use super::tokens::TokenTable;

/// A traces directory that was opened for reading.
pub struct TraceReader<R: TraceRow> {
    dir: PathBuf,
    file: Arc<MetaFile>,
    shards: Vec<PathBuf>,
    tokens: Arc<TokenTable>,
    rows: PhantomData<R>,
}

impl<R: TraceRow> TraceReader<R> {
    /// Opens a directory and checks that its parts are there.
    pub fn open(dir: &Path) -> Result<Self, StageError> {
        let file = MetaFile::read(dir)?;
        if file.meta.layout != R::LAYOUT {
            return Err(StageError::new(format!("{}: holds {:?} traces, expected {:?} ones", dir.display(), file.meta.layout, R::LAYOUT))
                .help("raw traces become projected ones by the kind `kd.project`"));
        }
        let mut shards = Vec::new();
        for i in 0..file.counts.shards {
            let shard = dir.join(format!("rows-{i:05}.parquet"));
            if !shard.is_file() {
                let what = format!("{}: missing, but meta.json counts {} shards", shard.display(), file.counts.shards);
                return Err(StageError::new(what).help(ADVICE));
            }
            shards.push(shard);
        }
        let tokens = Arc::new(TokenTable::read(dir)?);
        Ok(Self { dir: dir.to_owned(), file: Arc::new(file), shards, tokens, rows: PhantomData })
    }
    /// What holds for all rows.
    pub fn meta(&self) -> &TraceMeta {
        &self.file.meta
    }
    /// Sizes.
    pub fn counts(&self) -> &TraceCounts {
        &self.file.counts
    }
    /// Bytes of the ids in rows that leave them out.
    pub fn tokens(&self) -> &Arc<TokenTable> {
        &self.tokens
    }
    /// Number of row shards.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }
    /// All sequences with their rows, in the order in which they were written.
    pub fn sequences(&self) -> Result<Sequences<R>, StageError> {
        self.part_of(0..self.shards.len(), 0..usize::MAX)
    }
    /// The sequences of one shard; `sequences` is the range of their places among all.
    pub fn part(&self, shard: usize, sequences: Range<usize>) -> Result<Sequences<R>, StageError> {
        self.part_of(shard..shard + 1, sequences)
    }

    fn part_of(&self, shards: Range<usize>, sequences: Range<usize>) -> Result<Sequences<R>, StageError> {
        Ok(Sequences {
            sequences: Batches::open(&self.dir.join("sequences.parquet"), Part { rows: Some(sequences), ..Part::default() }, unreadable)?,
            waiting: VecDeque::new(),
            next_shard: shards.start,
            shards: self.shards[shards].iter().cloned().collect(),
            tokens: self.tokens.clone(),
            file: self.file.clone(),
            shard: None,
            of_sequence: 0,
            rows: VecDeque::new(),
            failed: false,
        })
    }
}

/// Iterator over `(sequence, rows)`.
pub struct Sequences<R: TraceRow> {
    sequences: Batches,
    waiting: VecDeque<SequenceRow>,
    shards: VecDeque<PathBuf>,
    tokens: Arc<TokenTable>,
    file: Arc<MetaFile>,
    /// Place among all shards of the next one to open.
    next_shard: usize,
    shard: Option<Batches>,
    of_sequence: usize,
    rows: VecDeque<((i64, i32, i32), R)>,
    failed: bool,
}

impl<R: TraceRow> Sequences<R> {
    /// Place among all shards of the one that holds the rows of the last sequence.
    pub fn shard(&self) -> usize {
        self.of_sequence
    }

    fn advance(&mut self) -> Result<Option<(SequenceRow, Vec<R>)>, StageError> {
        while self.waiting.is_empty() {
            let meta = &self.file.meta;
            match self.sequences.next(|batch, first| schema::sequences(batch, meta, first)) {
                Some(rows) => self.waiting.extend(rows?),
                None => return self.nothing_left(),
            }
        }
        let Some(sequence) = self.waiting.pop_front() else { return Ok(None) };
        let mut rows = Vec::new();
        loop {
            if self.rows.is_empty() && !self.fill()? {
                break;
            }
            let Some(((p, s, step), _)) = self.rows.front() else { break };
            if (*p, *s) != (sequence.prompt_idx, sequence.sample_idx) {
                break;
            }
            if *step != rows.len() as i32 {
                let path = self.shard.as_ref().unwrap_or(&self.sequences).path();
                return Err(corrupt(path, &format!("prompt {p} sample {s}: step_idx {step} where {} was expected", rows.len())));
            }
            // Rows are read from one shard at a time, the last that was opened.
            self.of_sequence = self.next_shard - 1;
            rows.extend(self.rows.pop_front().map(|r| r.1));
        }
        Ok(Some((sequence, rows)))
    }

    fn nothing_left(&mut self) -> Result<Option<(SequenceRow, Vec<R>)>, StageError> {
        if self.rows.is_empty() && !self.fill()? {
            return Ok(None);
        }
        let key = self.rows.front().map(|r| r.0).unwrap_or_default();
        Err(corrupt(self.sequences.path(), &format!("prompt {} sample {} has rows but no sequence here", key.0, key.1)))
    }

    /// Reads more rows; false when there are none.
    fn fill(&mut self) -> Result<bool, StageError> {
        loop {
            if self.shard.is_none() {
                match self.shards.pop_front() {
                    Some(path) => {
                        self.shard = Some(Batches::open(&path, Part::default(), unreadable)?);
                        self.next_shard += 1;
                    }
                    None => return Ok(false),
                }
            }
            let Some(shard) = &mut self.shard else { return Ok(false) };
            let (meta, tokens) = (&self.file.meta, &self.tokens);
            let rows = shard.next(|batch, first| Ok((schema::keys(batch)?, R::rows(batch, &Door { meta, tokens, first })?)));
            match rows {
                Some(read) => {
                    let (keys, rows) = read?;
                    self.rows.extend(keys.into_iter().zip(rows));
                    if !self.rows.is_empty() {
                        return Ok(true);
                    }
                }
                None => self.shard = None,
            }
        }
    }
}

impl<R: TraceRow> Iterator for Sequences<R> {
    type Item = Result<(SequenceRow, Vec<R>), StageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let item = self.advance().transpose();
        self.failed = matches!(item, Some(Err(_)));
        item
    }
}

//! Writes traces sequence by sequence; the same rows always give the same bytes.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_schema::SchemaRef;
use flow_engine::plugin::StageError;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use super::meta::MetaFile;
use super::meta::{TraceCounts, TraceMeta};
use super::rows::{CANDIDATES_OF_A_ROW, SequenceRow};
use super::schema::{self, TraceRow};
use super::tokens::{self, TokenTable};

/// Rows gathered before a batch goes to Parquet.
const BATCH_ROWS: usize = 8_192;
/// Rows of a row group: what a reader holds at once.
const GROUP_ROWS: usize = 32_768;
/// A shard is closed at the first sequence that ends beyond this.
const SHARD_ROWS: usize = 262_144;

/// Streams traces into a directory.
pub struct TraceWriter<R: TraceRow> {
    dir: PathBuf,
    meta: TraceMeta,
    properties: Arc<WriterProperties>,
    sequences: ArrowWriter<File>,
    sequence_schema: SchemaRef,
    waiting_sequences: Vec<SequenceRow>,
    shard: Option<ArrowWriter<File>>,
    shard_rows: usize,
    /// Candidates of the rows that wait, and of the open shard's: wide rows make smaller batches and shards.
    waiting_candidates: usize,
    shard_candidates: usize,
    /// Candidates of the widest row.
    widest: usize,
    row_schema: SchemaRef,
    keys: Vec<(i64, i32, usize)>,
    rows: Vec<R>,
    tokens: TokenTable,
    last: Option<(i64, i32)>,
    counts: TraceCounts,
}

fn properties(meta: &TraceMeta) -> WriterProperties {
    let json = serde_json::to_string(meta).unwrap_or_default();
    // Who rounds wants few bytes, and pays for them with time.
    let level = if meta.logprob_bits.is_some() { 9 } else { 1 };
    let mut builder = WriterProperties::builder()
        .set_created_by("flow".into())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(level).unwrap_or_default()))
        .set_max_row_group_row_count(Some(GROUP_ROWS))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_column_statistics_enabled(ColumnPath::from("prompt_idx"), EnabledStatistics::Chunk)
        .set_key_value_metadata(Some(vec![KeyValue::new("flow.meta".into(), json)]));
    // Neighbouring logprobs share exponents, ids their upper bytes: split by byte they compress where a dictionary cannot.
    for column in ["topk_ids.list.element", "topk_logprobs.list.element", "other_lse.list.element", "other_logprob", "teacher_sample_id"] {
        let path = ColumnPath::from(column.split('.').map(str::to_owned).collect::<Vec<_>>());
        builder = builder.set_column_dictionary_enabled(path.clone(), false).set_column_encoding(path, Encoding::BYTE_STREAM_SPLIT);
    }
    builder.build()
}

impl<R: TraceRow> TraceWriter<R> {
    /// Starts a traces directory (made if it is missing).
    pub fn create(dir: &Path, meta: &TraceMeta) -> Result<Self, StageError> {
        std::fs::create_dir_all(dir).map_err(|e| StageError::io("cannot make", dir, &e))?;
        let meta = meta.completed(R::LAYOUT);
        let properties = Arc::new(properties(&meta));
        let sequence_schema = schema::sequence_schema();
        let sequences = open(&dir.join("sequences.parquet"), &sequence_schema, &properties)?;
        Ok(Self {
            dir: dir.to_owned(),
            meta,
            properties,
            sequences,
            sequence_schema,
            waiting_sequences: Vec::new(),
            shard: None,
            shard_rows: 0,
            waiting_candidates: 0,
            shard_candidates: 0,
            widest: 0,
            row_schema: schema::row_schema::<R>(),
            keys: Vec::new(),
            rows: Vec::new(),
            tokens: TokenTable::default(),
            last: None,
            counts: TraceCounts::default(),
        })
    }

    /// Appends a sequence with all its rows, in step order.
    pub fn push(&mut self, sequence: SequenceRow, rows: impl IntoIterator<Item = R>) -> Result<(), StageError> {
        let key = (sequence.prompt_idx, sequence.sample_idx);
        if self.last == Some(key) {
            return Err(StageError::new(format!("prompt {} sample {} was written twice in a row", key.0, key.1)));
        }
        self.last = Some(key);
        let before = self.rows.len();
        self.rows.extend(rows);
        let n = self.rows.len() - before;
        self.keys.push((key.0, key.1, n));
        self.counts.sequences += 1;
        self.counts.rows += n as u64;
        *self.counts.rows_by_source.entry(sequence.source.name().into()).or_default() += n as u64;
        self.rows[before..].iter().for_each(|r| r.note_tokens(&mut self.tokens));
        self.counts.structural_rows += self.rows[before..].iter().filter(|r| r.structural()).count() as u64;
        self.shard_rows += n;
        let candidates: usize = self.rows[before..].iter().map(R::candidates).sum();
        self.waiting_candidates += candidates;
        self.shard_candidates += candidates;
        self.widest = self.rows[before..].iter().map(R::candidates).fold(self.widest, usize::max);
        self.waiting_sequences.push(sequence);
        let full = |rows: usize, candidates: usize, limit: usize| rows >= limit || candidates >= limit * CANDIDATES_OF_A_ROW;
        let shard_is_full = full(self.shard_rows, self.shard_candidates, SHARD_ROWS);
        if full(self.rows.len(), self.waiting_candidates, BATCH_ROWS) || shard_is_full {
            self.flush_rows()?;
        }
        if shard_is_full {
            self.close_shard()?;
        }
        if self.waiting_sequences.len() >= 1_024 {
            self.flush_sequences()?;
        }
        Ok(())
    }

    /// Writes what is left, the table of tokens and `meta.json`.
    pub fn finish(mut self) -> Result<TraceCounts, StageError> {
        self.flush_rows()?;
        self.close_shard()?;
        self.flush_sequences()?;
        let path = self.dir.join("sequences.parquet");
        self.sequences.close().map_err(|e| failed(&path, &e))?;
        if !self.tokens.is_empty() {
            self.tokens.write(&self.dir.join(tokens::FILE))?;
        }
        // What was announced may be less than what came: readers rely on it.
        let meta = TraceMeta { top_k: self.meta.top_k.max(self.widest), ..self.meta };
        let file = MetaFile { meta, counts: self.counts };
        let path = self.dir.join("meta.json");
        let text = serde_json::to_string_pretty(&file).map_err(|e| StageError::new(e.to_string()))?;
        std::fs::write(&path, text + "\n").map_err(|e| StageError::io("cannot write", &path, &e))?;
        Ok(file.counts)
    }

    fn shard_path(&self) -> PathBuf {
        self.dir.join(format!("rows-{:05}.parquet", self.counts.shards))
    }

    fn flush_rows(&mut self) -> Result<(), StageError> {
        if self.rows.is_empty() {
            self.keys.clear();
            return Ok(());
        }
        let path = self.shard_path();
        let batch = schema::row_batch(&self.keys, &self.rows, &self.meta, &self.row_schema).map_err(|e| failed(&path, &e))?;
        self.keys.clear();
        self.rows.clear();
        self.waiting_candidates = 0;
        let mut shard = match self.shard.take() {
            Some(open) => open,
            None => open(&path, &self.row_schema, &self.properties)?,
        };
        shard.write(&batch).map_err(|e| failed(&path, &e))?;
        self.shard = Some(shard);
        Ok(())
    }

    fn close_shard(&mut self) -> Result<(), StageError> {
        if let Some(shard) = self.shard.take() {
            let path = self.shard_path();
            shard.close().map_err(|e| failed(&path, &e))?;
            self.counts.shards += 1;
        }
        (self.shard_rows, self.shard_candidates) = (0, 0);
        Ok(())
    }

    fn flush_sequences(&mut self) -> Result<(), StageError> {
        let path = self.dir.join("sequences.parquet");
        let batch = schema::sequence_batch(&self.waiting_sequences, &self.sequence_schema).map_err(|e| failed(&path, &e))?;
        self.waiting_sequences.clear();
        self.sequences.write(&batch).map_err(|e| failed(&path, &e))
    }
}

fn open(path: &Path, schema: &SchemaRef, properties: &WriterProperties) -> Result<ArrowWriter<File>, StageError> {
    let file = File::create(path).map_err(|e| StageError::io("cannot create", path, &e))?;
    ArrowWriter::try_new(file, schema.clone(), Some(properties.clone())).map_err(|e| failed(path, &e))
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> StageError {
    StageError::new(format!("cannot write {}: {error}", path.display()))
}

//! Bytes of tokens, kept once beside the rows: a row whose ids are known need not repeat what they say.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, BinaryArray, Int32Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema};
use flow_engine::plugin::StageError;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::bytes::ByteStrings;
use super::parquet::{Batches, Part, unreadable};

/// File of a traces directory that holds the table.
pub(super) const FILE: &str = "tokens.parquet";
/// Ids above this are no vocabulary's: a damaged file must not make a table of that size.
const LARGEST_ID: i32 = 1 << 24;
const NONE: u32 = u32::MAX;

/// Bytes by token id; empty for a token that ends a text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenTable {
    places: Vec<u32>,
    strings: ByteStrings,
}

impl TokenTable {
    /// The bytes of an id, where it is listed.
    pub fn get(&self, id: i32) -> Option<&[u8]> {
        let place = *self.places.get(usize::try_from(id).ok()?)?;
        (place != NONE).then(|| self.strings.get(place as usize))
    }
    /// Lists an id; the first bytes of an id stay.
    pub fn insert(&mut self, id: u32, bytes: &[u8]) {
        let at = id as usize;
        if at >= self.places.len() {
            self.places.resize(at + 1, NONE);
        }
        if self.places[at] == NONE {
            self.places[at] = self.strings.len() as u32;
            self.strings.push(bytes);
        }
    }
    /// One above the largest id that is listed.
    pub fn id_limit(&self) -> usize {
        self.places.len()
    }
    /// Whether no id is listed.
    pub fn is_empty(&self) -> bool {
        self.strings.is_empty()
    }

    /// Writes the table by rising id.
    pub(super) fn write(&self, path: &Path) -> Result<(), StageError> {
        let failed = |e: &dyn std::fmt::Display| StageError::new(format!("cannot write {}: {e}", path.display()));
        let ids: Vec<i32> = (0..self.places.len() as i32).filter(|id| self.get(*id).is_some()).collect();
        let schema = Arc::new(Schema::new(vec![Field::new("id", DataType::Int32, false), Field::new("bytes", DataType::Binary, false)]));
        let columns: Vec<ArrayRef> =
            vec![Arc::new(BinaryArray::from_iter_values(ids.iter().filter_map(|id| self.get(*id)))), Arc::new(Int32Array::from(ids))];
        let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().rev().collect()).map_err(|e| failed(&e))?;
        // A vocabulary is small and written once: it may take its time.
        let properties = WriterProperties::builder()
            .set_created_by("flow".into())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(19).unwrap_or_default()))
            .set_dictionary_enabled(false)
            .set_column_encoding("id".into(), parquet::basic::Encoding::DELTA_BINARY_PACKED)
            .set_column_encoding("bytes".into(), parquet::basic::Encoding::DELTA_LENGTH_BYTE_ARRAY)
            .set_statistics_enabled(EnabledStatistics::None)
            .build();
        let file = File::create(path).map_err(|e| StageError::io("cannot create", path, &e))?;
        let mut writer = ArrowWriter::try_new(file, schema, Some(properties)).map_err(|e| failed(&e))?;
        writer.write(&batch).and_then(|()| writer.close().map(|_| ())).map_err(|e| failed(&e))
    }

    /// The table of a traces directory; empty where it has none.
    pub(super) fn read(dir: &Path) -> Result<Self, StageError> {
        let path = dir.join(FILE);
        let mut table = Self::default();
        if !path.exists() {
            return Ok(table);
        }
        let mut file = Batches::open(&path, Part::default(), unreadable)?;
        while let Some(listed) = file.next(|batch, _| table.list(batch)) {
            listed?;
        }
        Ok(table)
    }

    /// Lists the tokens of a batch.
    fn list(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let ids = batch.column_by_name("id").and_then(|c| c.as_primitive_opt::<Int32Type>()).ok_or("no column `id` of integers")?;
        let bytes = batch.column_by_name("bytes").and_then(|c| c.as_binary_opt::<i32>()).ok_or("no column `bytes` of bytes")?;
        if ids.null_count() > 0 {
            return Err("an id is missing".into());
        }
        for (id, bytes) in ids.values().iter().zip(bytes.iter()) {
            if !(0..=LARGEST_ID).contains(id) {
                return Err(format!("token id {id} is none"));
            }
            self.insert(*id as u32, bytes.unwrap_or_default());
        }
        Ok(())
    }
}

/// Where the bytes of a row's candidates are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CandidateBytes {
    /// In the row: a teacher that tells no ids, or another tokenizer's.
    Own(ByteStrings),
    /// In the table, by the row's ids; that of the drawn token too.
    Table(Arc<TokenTable>),
}

impl Default for CandidateBytes {
    fn default() -> Self {
        Self::Own(ByteStrings::default())
    }
}

impl<'a> FromIterator<&'a [u8]> for CandidateBytes {
    fn from_iter<T: IntoIterator<Item = &'a [u8]>>(items: T) -> Self {
        Self::Own(items.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_back_with_its_gaps() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(TokenTable::read(dir.path()).expect("none").is_empty());
        let mut table = TokenTable::default();
        for (id, bytes) in [(7, &b" a"[..]), (2, b"\xff\x00"), (9, b""), (7, b"later")] {
            table.insert(id, bytes);
        }
        table.write(&dir.path().join(FILE)).expect("written");
        let read = TokenTable::read(dir.path()).expect("read");
        let of = |id| read.get(id).map(<[u8]>::to_vec);
        assert_eq!((of(7), of(2), of(9)), (Some(b" a".to_vec()), Some(vec![0xff, 0]), Some(vec![])));
        assert_eq!((of(0), of(8), of(10), of(-1)), (None, None, None, None));
        std::fs::write(dir.path().join(FILE), b"PAR1 nothing PAR1").expect("written");
        assert!(TokenTable::read(dir.path()).expect_err("damaged").message.contains("tokens.parquet"));
    }
}

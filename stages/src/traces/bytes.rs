//! Many short byte strings.

/// Many short byte strings in two allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ByteStrings {
    data: Vec<u8>,
    ends: Vec<u32>,
}

impl ByteStrings {
    /// Room for `n` strings.
    pub fn with_capacity(n: usize) -> Self {
        Self { data: Vec::with_capacity(n * 5), ends: Vec::with_capacity(n) }
    }
    /// Appends one.
    pub fn push(&mut self, bytes: &[u8]) {
        self.data.extend_from_slice(bytes);
        self.ends.push(self.data.len() as u32);
    }
    /// How many.
    pub fn len(&self) -> usize {
        self.ends.len()
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }
    /// String `i`.
    pub fn get(&self, i: usize) -> &[u8] {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.data[start..self.ends[i] as usize]
    }
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        (0..self.len()).map(|i| self.get(i))
    }
}

impl<'a> FromIterator<&'a [u8]> for ByteStrings {
    fn from_iter<T: IntoIterator<Item = &'a [u8]>>(items: T) -> Self {
        let mut all = Self::default();
        items.into_iter().for_each(|b| all.push(b));
        all
    }
}

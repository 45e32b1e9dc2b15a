//! The sizes of attention as the twins count with them.

use super::Shape;

pub(super) struct Dims {
    pub d: usize,
    pub heads: usize,
    pub group: usize,
    pub kv: usize,
    pub q_len: usize,
    pub kv_len: usize,
    pub scale: f32,
    pub width: usize,
}

pub(super) fn dims(s: &Shape) -> Dims {
    Dims {
        d: s.head_dim as usize,
        heads: s.heads as usize,
        group: (s.heads / s.kv_heads) as usize,
        kv: (s.kv_heads * s.head_dim) as usize,
        q_len: s.q_len as usize,
        kv_len: s.kv_len as usize,
        scale: s.scale,
        width: (s.heads * s.head_dim) as usize,
    }
}

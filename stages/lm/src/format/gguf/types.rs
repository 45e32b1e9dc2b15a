//! How tensors are stored: ids, names and block sizes of the GGUF specification (`ggml_type`).

use super::pack;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// float32.
    F32,
    /// float16.
    F16,
    /// bfloat16.
    Bf16,
    /// 1 bit, a scale for 128 weights.
    Q1_0,
    /// 2 bits, a scale for 64 weights.
    Q2_0,
    /// As `Q2_0` with a scale for 128 weights and the same id, as a fork of llama.cpp writes it. It is read, never written.
    Q2_0G128,
    /// 4 bits, a scale for 32 weights.
    Q4_0,
    /// 4 bits, a scale and a minimum for 32 weights.
    Q4_1,
    /// 5 bits, a scale for 32 weights.
    Q5_0,
    /// 5 bits, a scale and a minimum for 32 weights.
    Q5_1,
    /// 8 bits, a scale for 32 weights.
    Q8_0,
    /// 2 bits, sixteen 4-bit scales and minima for 256 weights.
    Q2K,
    /// 3 bits, sixteen 6-bit scales for 256 weights.
    Q3K,
    /// 4 bits, eight 6-bit scales and minima for 256 weights.
    Q4K,
    /// 5 bits, eight 6-bit scales and minima for 256 weights.
    Q5K,
    /// 6 bits, sixteen 8-bit scales for 256 weights.
    Q6K,
    /// 4 bits into a table of 16 values, a scale for 32 weights.
    Iq4Nl,
    /// 4 bits into the same table, eight 6-bit scales for 256 weights.
    Iq4Xs,
    /// 4-bit floats, a power of two for 32 weights.
    Mxfp4,
    /// Ternary, 1.6875 bits a weight.
    Tq1_0,
    /// Ternary, 2.0625 bits a weight.
    Tq2_0,
    /// Ternary of bitnet.cpp (x86), 2 bits a weight and one scale after all of them.
    I2S,
}

use TensorType::{
    Bf16, F16, F32, I2S, Iq4Nl, Iq4Xs, Mxfp4, Q1_0, Q2_0, Q2_0G128, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0, Tq1_0, Tq2_0,
};

impl TensorType {
    /// All that are read.
    pub const ALL: [TensorType; 22] = [
        F32, F16, Bf16, Q1_0, Q2_0, Q2_0G128, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, Iq4Nl, Iq4Xs, Mxfp4, Tq1_0, Tq2_0, I2S,
    ];

    /// (id in files, name, weights of a block, bytes of a block).
    const fn layout(self) -> (u32, &'static str, usize, usize) {
        match self {
            F32 => (0, "F32", 1, 4),
            F16 => (1, "F16", 1, 2),
            Q4_0 => (2, "Q4_0", 32, 18),
            Q4_1 => (3, "Q4_1", 32, 20),
            Q5_0 => (6, "Q5_0", 32, 22),
            Q5_1 => (7, "Q5_1", 32, 24),
            Q8_0 => (8, "Q8_0", 32, 34),
            Q2K => (10, "Q2_K", 256, 84),
            Q3K => (11, "Q3_K", 256, 110),
            Q4K => (12, "Q4_K", 256, 144),
            Q5K => (13, "Q5_K", 256, 176),
            Q6K => (14, "Q6_K", 256, 210),
            Iq4Nl => (20, "IQ4_NL", 32, 18),
            Iq4Xs => (23, "IQ4_XS", 256, 136),
            Bf16 => (30, "BF16", 1, 2),
            Tq1_0 => (34, "TQ1_0", pack::BLOCK, pack::TQ1_0_BYTES),
            Tq2_0 => (35, "TQ2_0", pack::BLOCK, pack::TQ2_0_BYTES),
            I2S => (36, "I2_S", pack::I2_S_BLOCK, pack::I2_S_BLOCK / 4),
            Mxfp4 => (39, "MXFP4", 32, 17),
            Q1_0 => (41, "Q1_0", 128, 18),
            Q2_0 => (42, "Q2_0", pack::Q2_0_GROUP, pack::q2_0_bytes(pack::Q2_0_GROUP)),
            Q2_0G128 => (42, "Q2_0_G128", 2 * pack::Q2_0_GROUP, pack::q2_0_bytes(2 * pack::Q2_0_GROUP)),
        }
    }
    /// Id in files.
    pub fn id(self) -> u32 {
        self.layout().0
    }
    /// Name in llama.cpp.
    pub fn name(self) -> &'static str {
        self.layout().1
    }
    /// Weights of a block; blocks never cross rows.
    pub fn block(self) -> usize {
        self.layout().2
    }
    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        self.layout().3
    }
    /// By its id; `Q2_0` where only the sizes of a file tell which of two it is.
    pub fn of(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.id() == id)
    }
    /// Bytes of `n` values, where `n` is a multiple of the block.
    pub fn bytes(self, n: u64) -> u64 {
        let after = if self == I2S { pack::I2_S_TAIL as u64 } else { 0 };
        (n / self.block() as u64).saturating_mul(self.block_bytes() as u64).saturating_add(after)
    }
}

/// Name of a type that is not read.
pub fn foreign_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24..=27 => "integer",
        28 => "F64",
        29 => "IQ1_M",
        40 => "NVFP4",
        _ => return format!("type id {id}"),
    };
    format!("{name} (type id {id})")
}

/// The names of all types that are read, for messages.
pub fn supported() -> String {
    TensorType::ALL.map(TensorType::name).join(", ")
}

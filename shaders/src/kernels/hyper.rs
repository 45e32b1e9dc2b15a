//! Scalars that change from step to step: indices into the `hyper` buffer ([`LEN`] floats), for the host, the twins and WGSL.

/// Declares the slots for Rust, and as text for WGSL.
macro_rules! slots {
    ($($(#[$doc:meta])* $name:ident = $slot:literal;)*) => {
        $($(#[$doc])* pub const $name: usize = $slot;)*
        /// The piece of a module that reads `hyper`: its slots as `HYPER_<name>`.
        pub(crate) const WGSL: &str = concat!($("const HYPER_", stringify!($name), ": u32 = ", $slot, "u;\n",)*);
    };
}

slots! {
    /// Learning rate of AdamW.
    LR = 0;
    /// AdamW β1.
    BETA1 = 1;
    /// AdamW β2.
    BETA2 = 2;
    /// AdamW eps.
    EPS = 3;
    /// AdamW weight decay.
    WEIGHT_DECAY = 4;
    /// 1 − β1^t.
    BIAS1 = 5;
    /// 1 − β2^t.
    BIAS2 = 6;
    /// Largest global gradient norm.
    CLIP = 7;
    /// 1/τ of the distillation loss.
    INV_TAU = 8;
    /// 127 (A8) or 7 (A4).
    QMAX = 9;
    /// Learning rate of Muon.
    MUON_LR = 10;
    /// Momentum of Muon.
    MUON_MOMENTUM = 11;
    /// Weight decay of Muon.
    MUON_DECAY = 12;
    /// 1 / loss scale: gradients are that much too large until the update.
    INV_LOSS_SCALE = 13;
    /// How far weights are ternary: 0 masters, 1 codes.
    PRESSURE = 14;
    /// 1 / temperature of the soft assignment; 0: hard codes.
    INV_TEMPERATURE = 15;
}

/// Floats in the buffer.
pub const LEN: usize = 16;

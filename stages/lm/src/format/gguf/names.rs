//! Names of tensors in GGUF files.

/// What the frequencies of RoPE are divided by.
pub const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Name of one of our tensors in a GGUF file.
pub fn gguf_name(ours: &str) -> String {
    let fixed = match ours {
        "embed" => Some("token_embd.weight"),
        "norm" => Some("output_norm.weight"),
        "head" => Some("output.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return fixed.into();
    }
    let Some((layer, name)) = ours.strip_prefix("layers.").and_then(|r| r.split_once('.')) else { return ours.into() };
    let place = match name {
        "q_bias" => return format!("blk.{layer}.attn_q.bias"),
        "k_bias" => return format!("blk.{layer}.attn_k.bias"),
        "v_bias" => return format!("blk.{layer}.attn_v.bias"),
        "q_norm" => "attn_q_norm",
        "k_norm" => "attn_k_norm",
        "mlp_norm" => "ffn_norm",
        "mlp_sub_norm" => "ffn_sub_norm",
        "q" => "attn_q",
        "k" => "attn_k",
        "v" => "attn_v",
        "o" => "attn_output",
        "gate" => "ffn_gate",
        "up" => "ffn_up",
        "down" => "ffn_down",
        other => other,
    };
    format!("blk.{layer}.{place}.weight")
}

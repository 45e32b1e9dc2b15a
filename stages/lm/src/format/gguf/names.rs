//! Names of tensors in GGUF files.

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

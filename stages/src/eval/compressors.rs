//! What general compressors make of the held-out text: the yardstick that needs no training.

use std::io::Write;

use flow_engine::plugin::StageError;

use crate::measurements::Compressor;

fn bzip2(data: &[u8]) -> std::io::Result<usize> {
    let mut out = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
    out.write_all(data)?;
    Ok(out.finish()?.len())
}

fn xz(data: &[u8]) -> std::io::Result<usize> {
    let mut out = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(9))?;
    out.write_all(data)?;
    Ok(out.finish()?.len())
}

/// Figures of bzip2 -9 and xz -9 on the held-out text alone and, given it, after the training text.
pub fn figures(holdout: &[u8], train: Option<&[u8]>) -> Result<Vec<Compressor>, StageError> {
    let failed = |e: std::io::Error| StageError::new(format!("compressing the held-out text failed: {e}"));
    let bits = |n: usize| (8.0 * n as f64 / holdout.len().max(1) as f64 * 1e4).round() / 1e4;
    type Program = fn(&[u8]) -> std::io::Result<usize>;
    let programs: [(&'static str, Program); 2] = [("bzip2 -9", bzip2), ("xz -9", xz)];
    let mut all = Vec::new();
    for (name, compress) in programs {
        let figure = |n: usize, primed| Compressor { name: name.into(), bits_per_byte: Some(bits(n)), primed };
        all.push(figure(compress(holdout).map_err(failed)?, false));
        if let Some(train) = train {
            let both = compress(&[train, holdout].concat()).map_err(failed)?;
            let before = compress(train).map_err(failed)?;
            all.push(figure(both.saturating_sub(before), true));
        }
    }
    Ok(all)
}

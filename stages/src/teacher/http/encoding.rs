//! Bodies that come compressed. None is asked for; servers and what stands before them send them all the same.

use std::io::Read;

/// The body behind its `content-encoding`, of at most so many bytes.
pub fn decoded(encodings: &str, body: Vec<u8>, most: usize) -> Result<Vec<u8>, String> {
    let names = encodings.split(',').map(|n| n.trim().to_ascii_lowercase()).filter(|n| !n.is_empty());
    // The last one was applied last.
    names.rev().try_fold(body, |body, name| one(&name, &body, most))
}

fn one(name: &str, body: &[u8], most: usize) -> Result<Vec<u8>, String> {
    let limit = most as u64 + 1;
    let mut out = Vec::new();
    let read = match name {
        "identity" => return Ok(body.to_vec()),
        "gzip" | "x-gzip" => flate2::read::MultiGzDecoder::new(body).take(limit).read_to_end(&mut out),
        // With the header that its name means, or without, as some send it.
        "deflate" if body.first().is_some_and(|b| b & 0x0f == 8) => flate2::read::ZlibDecoder::new(body).take(limit).read_to_end(&mut out),
        "deflate" => flate2::read::DeflateDecoder::new(body).take(limit).read_to_end(&mut out),
        "br" => brotli_decompressor::Decompressor::new(body, 4096).take(limit).read_to_end(&mut out),
        "zstd" => zstd::Decoder::new(body).and_then(|d| d.take(limit).read_to_end(&mut out)),
        other => return Err(format!("the answer is encoded as `{other}`, which nobody asked for")),
    };
    read.map_err(|e| format!("the answer is no whole {name}: {e}"))?;
    if out.len() > most { Err(format!("more than {} MiB came as one answer", most >> 20)) } else { Ok(out) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn gzip(body: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(body).expect("write");
        out.finish().expect("finish")
    }

    #[test]
    fn every_encoding_is_read() {
        let body = b"{\"a\": 1}".to_vec();
        let zstd = zstd::bulk::compress(&body, 1).expect("zstd");
        // An uncompressed meta-block of eight bytes (RFC 7932, section 9.2), and the empty last one.
        let br = [&[0x8b, 0x03, 0x80][..], &body, &[0x03]].concat();
        for (encodings, sent) in [
            ("gzip", gzip(&body)),
            ("zstd", zstd.clone()),
            ("br", br),
            ("zstd, x-gzip", gzip(&zstd)),
            ("", body.clone()),
            ("identity", body.clone()),
        ] {
            assert_eq!(decoded(encodings, sent, 100).as_deref(), Ok(body.as_slice()), "{encodings}");
        }
        assert!(decoded("gzip", gzip(&body)[..20].to_vec(), 100).expect_err("cut").contains("no whole gzip"));
        assert!(decoded("zstd", zstd, 4).expect_err("a bomb").contains("more than"));
        assert!(decoded("lzw", body, 4).expect_err("unknown").contains("`lzw`"));
    }
}

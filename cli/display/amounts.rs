//! Times and sizes for people.

use flow_engine::clock::unix_now;

/// Wall seconds for people.
pub fn seconds(s: f64) -> String {
    if s < 10.0 {
        format!("{s:.2} s")
    } else if s < 120.0 {
        format!("{s:.1} s")
    } else {
        format!("{} min {:02} s", (s / 60.0) as u64, (s % 60.0) as u64)
    }
}

/// Bytes for people.
pub fn bytes(n: u64) -> String {
    match n {
        0..1024 => format!("{n} B"),
        1024..1_048_576 => format!("{:.1} KiB", n as f64 / 1024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", n as f64 / 1_048_576.0),
        _ => format!("{:.2} GiB", n as f64 / 1_073_741_824.0),
    }
}

/// A moment in the past for people.
pub fn ago(unix: u64) -> String {
    let now = unix_now();
    let past = now.saturating_sub(unix);
    match past {
        0..60 => format!("{past} s ago"),
        60..7200 => format!("{} min ago", past / 60),
        7200..172_800 => format!("{} h ago", past / 3600),
        _ => format!("{} days ago", past / 86_400),
    }
}

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

/// Seconds that are expected, not measured, for people: two digits at most.
pub fn about(s: f64) -> String {
    let digits = |x: f64| if x < 9.95 { format!("{x:.1}") } else { format!("{x:.0}") };
    let (minutes, hours, days) = (s / 60.0, s / 3600.0, s / 86_400.0);
    match s {
        ..1.0 => "less than 1 s".into(),
        ..59.5 => format!("about {s:.0} s"),
        ..3570.0 => format!("about {minutes:.0} min"),
        ..172_800.0 => format!("about {} h", digits(hours)),
        _ => format!("about {} days", digits(days)),
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

#[cfg(test)]
mod tests {
    use super::about;

    #[test]
    fn expected_times_have_the_unit_that_fits() {
        let said = [0.2, 40.4, 59.9, 700.0, 3569.0, 3600.0, 5040.0, 36_000.0, 172_799.0, 400_000.0, 3e7].map(about);
        let expected = [
            "less than 1 s",
            "about 40 s",
            "about 1 min",
            "about 12 min",
            "about 59 min",
            "about 1.0 h",
            "about 1.4 h",
            "about 10 h",
            "about 48 h",
            "about 4.6 days",
            "about 347 days",
        ];
        assert_eq!(said, expected);
    }
}

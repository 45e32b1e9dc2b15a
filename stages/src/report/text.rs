//! Numbers and text as a person reads them.

/// A whole number with commas between thousands.
pub fn whole(v: f64) -> String {
    let digits = format!("{:.0}", v.abs());
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            out.push(',');
        }
        out.push(c);
    }
    if v <= -0.5 { format!("-{out}") } else { out }
}

/// Four significant digits at most.
pub fn number(v: f64) -> String {
    let a = v.abs();
    if v == 0.0 {
        "0".into()
    } else if a >= 1000.0 {
        whole(v)
    } else if a >= 100.0 {
        format!("{v:.1}")
    } else if a >= 10.0 {
        format!("{v:.2}")
    } else if a >= 0.001 {
        format!("{v:.3}")
    } else {
        format!("{v:.1e}")
    }
}

/// For an axis: 1.2k, 300k, 2.5M.
pub fn short(v: f64) -> String {
    let a = v.abs();
    let trim = |s: String| if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').to_owned() } else { s };
    if a < 1e-12 {
        "0".into()
    } else if a >= 1e9 {
        trim(format!("{:.2}", v / 1e9)) + "G"
    } else if a >= 1e6 {
        trim(format!("{:.2}", v / 1e6)) + "M"
    } else if a >= 1e4 {
        trim(format!("{:.1}", v / 1e3)) + "k"
    } else if a >= 1e-3 {
        trim(format!("{v:.4}"))
    } else {
        format!("{v:.0e}")
    }
}

/// MiB or GiB.
pub fn bytes(v: f64) -> String {
    const KIB: f64 = 1024.0;
    if v >= KIB * KIB * KIB {
        format!("{:.2} GiB", v / KIB / KIB / KIB)
    } else if v >= KIB * KIB {
        format!("{:.2} MiB", v / KIB / KIB)
    } else {
        format!("{:.1} KiB", v / KIB)
    }
}

/// A share as a percentage.
pub fn percent(v: f64) -> String {
    format!("{:.2} %", 100.0 * v)
}

/// Seconds, minutes or hours.
pub fn seconds(v: f64) -> String {
    if v < 0.0995 {
        format!("{:.0} ms", v * 1000.0)
    } else if v < 60.0 {
        format!("{v:.1} s")
    } else if v < 3600.0 {
        format!("{:.0} min {:02.0} s", (v / 60.0).floor(), v % 60.0)
    } else {
        format!("{:.0} h {:02.0} min", (v / 3600.0).floor(), (v % 3600.0) / 60.0)
    }
}

/// A value or a dash.
pub fn or_dash(v: Option<f64>, f: impl Fn(f64) -> String) -> String {
    v.filter(|v| v.is_finite()).map_or_else(|| "–".into(), f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_well() {
        assert_eq!((whole(1234567.0), whole(999.0), whole(-1000.0)), ("1,234,567".into(), "999".into(), "-1,000".into()));
        assert_eq!((short(400_000.0), short(0.0), short(1.5e6), short(0.02)), ("400k".into(), "0".into(), "1.5M".into(), "0.02".into()));
        assert_eq!((bytes(3.5 * 1048576.0), seconds(75.0), percent(0.01234)), ("3.50 MiB".into(), "1 min 15 s".into(), "1.23 %".into()));
        assert_eq!((number(0.04512), number(12345.0), number(1e-5)), ("0.045".into(), "12,345".into(), "1.0e-5".into()));
    }
}

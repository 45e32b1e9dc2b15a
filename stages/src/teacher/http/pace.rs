//! When the next request may go: limits a minute, pauses that the server asks for, and an outage.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex as Turn, MutexGuard as TurnGuard};
use tokio::time::Instant;

use super::spec::Limits;

/// Failures in a row after which only one request at a time is tried.
const OPEN_AFTER: u32 = 5;
/// No server's wish is followed for longer.
pub const LONGEST: Duration = Duration::from_secs(3600);

/// Spreads requests and tokens over time. All waiting is by the monotonic clock, so that a clock that is set does nothing.
pub struct Pace {
    state: Mutex<State>,
    one_at_a_time: Turn<()>,
    requests: Option<f64>,
    tokens: Option<f64>,
}

struct State {
    /// When the next request may go, by requests and by tokens.
    requests: Instant,
    tokens: Instant,
    /// No request goes before.
    pause: Instant,
    /// Failures since the last answer.
    failures: u32,
    /// When an answer last came.
    heard: Instant,
    /// Whether one ever did.
    ever: bool,
    /// Whether it was told that none comes.
    told: bool,
}

/// What it means that no answer came.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    /// The teacher counts as away.
    pub away: bool,
    /// Since it was heard.
    pub since: Duration,
    /// Nobody was told yet.
    pub news: bool,
}

impl Pace {
    /// With these limits a minute.
    pub fn new(limits: &Limits) -> Self {
        let now = Instant::now();
        let state = State { requests: now, tokens: now, pause: now, failures: 0, heard: now, ever: false, told: false };
        Self {
            state: Mutex::new(state),
            one_at_a_time: Turn::new(()),
            requests: limits.requests_per_minute,
            tokens: limits.tokens_per_minute,
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a request of at most so many tokens may go. While the teacher does not answer, requests go one at a
    /// time: the guard is the turn.
    pub async fn admit(&self, tokens: u64) -> Option<TurnGuard<'_, ()>> {
        let turn = if self.state().failures >= OPEN_AFTER { Some(self.one_at_a_time.lock().await) } else { None };
        let at = {
            let mut state = self.state();
            let now = Instant::now();
            let at = now.max(state.requests).max(state.tokens);
            state.requests = next(state.requests, now, self.requests, 1.0);
            state.tokens = next(state.tokens, now, self.tokens, tokens as f64);
            at
        };
        tokio::time::sleep_until(at).await;
        loop {
            // A pause that began while this request waited holds for it too.
            let pause = self.state().pause;
            if pause <= Instant::now() {
                return turn;
            }
            tokio::time::sleep_until(pause).await;
        }
    }

    /// Gives back what a request did not use.
    pub fn settle(&self, admitted: u64, used: u64) {
        if let Some(per_minute) = self.tokens
            && used < admitted
        {
            let back = Duration::from_secs_f64((admitted - used) as f64 * 60.0 / per_minute);
            let mut state = self.state();
            state.tokens = state.tokens.checked_sub(back).unwrap_or(state.tokens);
        }
    }

    /// Nobody asks before so long.
    pub fn pause(&self, wait: Duration) {
        let until = Instant::now() + wait.min(LONGEST);
        let mut state = self.state();
        state.pause = state.pause.max(until);
    }

    /// An answer came, of whatever kind. Gives how long it was waited for, if that was told.
    pub fn heard(&self) -> Option<Duration> {
        let mut state = self.state();
        let waited = state.heard.elapsed();
        state.failures = 0;
        state.ever = true;
        state.heard = Instant::now();
        std::mem::take(&mut state.told).then_some(waited)
    }

    /// No answer came. That is told at once where nobody is there to give one (`unreachable`) or nobody ever was.
    pub fn silent(&self, unreachable: bool) -> Silence {
        let mut state = self.state();
        state.failures = state.failures.saturating_add(1);
        let away = state.failures >= OPEN_AFTER;
        let news = !state.told && (unreachable || away || !state.ever);
        state.told |= news;
        Silence { away, since: state.heard.elapsed(), news }
    }
}

fn next(at: Instant, now: Instant, per_minute: Option<f64>, amount: f64) -> Instant {
    per_minute.map_or(at, |n| at.max(now) + Duration::from_secs_f64((amount * 60.0 / n).min(LONGEST.as_secs_f64())))
}

/// Header values of an answer, by lower-case name.
pub type Headers<'a> = &'a dyn Fn(&str) -> Option<String>;

/// How long the server asks to wait: `Retry-After` in seconds or as a date, else when a spent limit is reset.
/// A date counts from the server's own `Date` where it sends one: this machine's clock may be wrong.
pub fn asked_to_wait(headers: Headers<'_>, now: SystemTime) -> Option<Duration> {
    if let Some(ms) = headers("retry-after-ms").and_then(|v| v.trim().parse::<f64>().ok()) {
        return span(ms / 1e3);
    }
    let now = headers("date").and_then(|d| httpdate::parse_http_date(&d).ok()).unwrap_or(now);
    if let Some(value) = headers("retry-after") {
        let value = value.trim();
        return match value.parse::<f64>() {
            Ok(seconds) => span(seconds),
            Err(_) => Some(httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or_default()),
        };
    }
    let mut longest = None;
    for what in ["requests", "tokens", ""] {
        let name = |word: &str| if what.is_empty() { format!("x-ratelimit-{word}") } else { format!("x-ratelimit-{word}-{what}") };
        let spent = headers(&name("remaining")).is_none_or(|r| r.trim().parse::<f64>().is_ok_and(|r| r < 1.0));
        if spent && let Some(wait) = headers(&name("reset")).and_then(|v| reset(v.trim(), now)) {
            longest = longest.max(Some(wait));
        }
    }
    longest
}

fn span(seconds: f64) -> Option<Duration> {
    (seconds.is_finite() && seconds >= 0.0).then(|| Duration::from_secs_f64(seconds.min(1e9)))
}

/// `6m0s`, `20ms`, seconds, or a time in seconds or milliseconds since 1970.
fn reset(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(number) = text.parse::<f64>() {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs_f64();
        return match number {
            n if n > 1e12 => span((n / 1e3 - since).max(0.0)),
            n if n > 1e9 => span((n - since).max(0.0)),
            n => span(n),
        };
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).filter(|n| *n > 0)?;
        let amount: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, word) = [(1e-3, "ms"), (3600.0, "h"), (60.0, "m"), (1.0, "s")].into_iter().find(|(_, w)| rest.starts_with(w))?;
        total += amount * unit;
        rest = &rest[word.len()..];
    }
    span(total)
}

/// How long to wait before try `n` (from 1): doubled from try to try, by chance between half and all of it.
pub fn backoff(limits: &Limits, n: u32, chance: f64) -> Duration {
    let full = limits.backoff * f64::from(2u32.saturating_pow(n.saturating_sub(1).min(30)));
    Duration::from_secs_f64(full.min(limits.backoff_max) * (0.5 + 0.5 * chance))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(headers: &[(&str, &str)], now: SystemTime) -> Option<f64> {
        let find = |name: &str| headers.iter().find(|h| h.0 == name).map(|h| h.1.to_owned());
        asked_to_wait(&find, now).map(|d| d.as_secs_f64())
    }

    #[test]
    fn every_way_to_say_wait_is_understood() {
        let now = httpdate::parse_http_date("Wed, 25 Nov 2026 07:28:00 GMT").expect("date");
        assert_eq!(wait(&[("retry-after", "7")], now), Some(7.0));
        assert_eq!(wait(&[("retry-after-ms", "250")], now), Some(0.25));
        assert_eq!(wait(&[("retry-after", "Wed, 25 Nov 2026 07:28:30 GMT")], now), Some(30.0));
        assert_eq!(wait(&[("retry-after", "Wed, 25 Nov 2026 07:27:00 GMT")], now), Some(0.0));
        assert_eq!(wait(&[("x-ratelimit-reset-requests", "6m0s"), ("x-ratelimit-reset-tokens", "20ms")], now), Some(360.0));
        let one = [("x-ratelimit-reset-requests", "6m0s"), ("x-ratelimit-remaining-requests", "3"), ("x-ratelimit-reset-tokens", "1.5s")];
        assert_eq!(wait(&one, now), Some(1.5));
        let since = now.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        assert_eq!(wait(&[("x-ratelimit-reset", &format!("{}", since + 5))], now), Some(5.0));
        assert_eq!(wait(&[("x-ratelimit-reset", &format!("{}", (since + 5) * 1000))], now), Some(5.0));
        for nonsense in ["soon", "-3", "NaN", "1x"] {
            assert_eq!(wait(&[("retry-after", nonsense), ("x-ratelimit-reset", nonsense)], now), None, "{nonsense}");
        }
    }

    #[test]
    fn a_clock_that_jumps_changes_no_wait() {
        let date = "Wed, 25 Nov 2026 07:28:00 GMT";
        let now = httpdate::parse_http_date(date).expect("date");
        let headers = [("date", date), ("retry-after", "Wed, 25 Nov 2026 07:28:02 GMT")];
        for jump in [0, 86_400, 3 * 365 * 86_400] {
            assert_eq!(wait(&headers, now + Duration::from_secs(jump)), Some(2.0));
            assert_eq!(wait(&headers, now - Duration::from_secs(jump)), Some(2.0));
        }
    }

    #[tokio::test]
    async fn requests_and_tokens_are_spread_and_unused_ones_come_back() {
        let limits = Limits { requests_per_minute: Some(1_200.0), tokens_per_minute: Some(60_000.0), ..Limits::default() };
        let pace = Pace::new(&limits);
        let start = Instant::now();
        for _ in 0..4 {
            pace.admit(10).await;
        }
        assert!(start.elapsed() >= Duration::from_millis(149));
        pace.admit(60_000).await;
        pace.settle(60_000, 100);
        pace.admit(1).await;
        assert!(start.elapsed() >= Duration::from_millis(249) && start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
        pace.pause(Duration::from_millis(400));
        pace.admit(1).await;
        assert!(start.elapsed() >= Duration::from_millis(649));
    }

    #[test]
    fn silence_is_told_once_and_at_once() {
        let pace = Pace::new(&Limits::default());
        assert_eq!([1, 2, 9].map(|_| pace.silent(false).news), [true, false, false], "never heard");
        assert!(pace.heard().is_some() && pace.heard().is_none());
        assert_eq!([1, 2, 3, 4, 5, 6].map(|_| pace.silent(false).news), [false, false, false, false, true, false]);
        pace.heard();
        assert_eq!([1, 2].map(|_| pace.silent(true).news), [true, false], "nobody there");
    }

    #[test]
    fn backoff_doubles_within_its_limits() {
        let limits = Limits { backoff: 1.0, backoff_max: 20.0, ..Limits::default() };
        assert_eq!([1, 2, 3, 9].map(|n| backoff(&limits, n, 1.0).as_secs_f64()), [1.0, 2.0, 4.0, 20.0]);
        assert_eq!(backoff(&limits, 1, 0.0).as_secs_f64(), 0.5);
    }
}

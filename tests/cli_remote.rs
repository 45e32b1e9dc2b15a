//! The remote cache: what is shared through it, what is left there until needed, and what becomes of a run beside one
//! that hangs, fails, lies, is full, or takes nothing.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use support::{Project, Ran};

/// `b` reads `a`, and `c` reads `b`; only `c` is published.
const CHAIN: &str = "flow: 1\nstages:\n  a: { use: shell, with: { run: 'mkdir $out; date +%s%N > $out/x; echo big > $out/y' } }\n  b: { use: shell, in: { t: a }, with: { run: 'cat $t/x > $out' } }\n  c: { use: shell, in: { t: b }, with: { run: 'cat $t > $out' } }\npublish: { out: c }\n";

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}

fn run(project: &Project, url: &str) -> Ran {
    let ran = project.run(&["--remote", url]).expect(0);
    let _ = fs::remove_file(project.path("executions"));
    ran
}

fn warnings(ran: &Ran) -> usize {
    ran.err.matches("warning: remote cache").count()
}

/// The files of a kind in a remote folder.
fn stored(remote: &Path, kind: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in fs::read_dir(remote.join(kind)).into_iter().flatten().flatten() {
        found.extend(fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.path()));
    }
    found.sort();
    found
}

#[test]
fn a_second_machine_runs_nothing_and_fetches_only_what_it_needs() {
    let remote = tempfile::tempdir().unwrap();
    let url = url(remote.path());
    let first = Project::new(CHAIN);
    assert_eq!(run(&first, &url).names("executed"), ["a", "b", "c"]);
    assert_eq!(stored(remote.path(), "actions").len(), 3);
    let second = Project::new(CHAIN);
    let ran = run(&second, &url);
    assert_eq!((ran.names("executed"), ran.names("reused")), (vec![], vec!["a".into(), "b".into(), "c".into()]));
    assert_eq!(first.read("out"), second.read("out"));
    assert_eq!(second.files(".flow/objects").len(), 1, "only what is published");
    // A person who wants more gets it.
    second.flow(&["get", "p.yaml", "a", "--to", "a", "--remote", &url]).expect(0);
    assert_eq!(second.read("a/x"), first.read("out"));
    assert!(second.flow(&["verify", "--remote", &url]).expect(0).out.contains("everything is whole"));
    // A stage that executes reads what is still there only.
    let third = Project::new(&CHAIN.replace("cat $t > $out", "cat $t $t > $out"));
    assert_eq!(run(&third, &url).names("executed"), ["c"]);
    assert_eq!(third.read("out"), first.read("out").repeat(2));
    assert_eq!(third.files(".flow/objects").len(), 2, "b's file, and its own");
    // Without the remote, what was left there is made here.
    fs::remove_dir_all(second.path(".flow/objects")).unwrap();
    fs::create_dir(second.path(".flow/objects")).unwrap();
    let alone = second.run(&["--remote", "none"]).expect(0);
    assert_eq!(alone.names("executed").first().map(String::as_str), Some("a"));
}

#[test]
fn objects_that_are_lost_or_false_are_made_again() {
    for spoil in [|f: &Path| fs::remove_file(f).unwrap(), |f: &Path| fs::write(f, "something else").unwrap()] {
        let remote = tempfile::tempdir().unwrap();
        let url = url(remote.path());
        let first = Project::new(CHAIN);
        run(&first, &url);
        for object in stored(remote.path(), "objects") {
            spoil(&object);
        }
        // A published result, and an input of a stage that executes.
        let second = Project::new(CHAIN);
        let ran = run(&second, &url);
        assert!(ran.names("executed").contains(&"c".into()), "{}", ran.out);
        assert_eq!(second.read("out").lines().count(), 1);
        let third = Project::new(&CHAIN.replace("cat $t > $out", "cat $t $t > $out"));
        let ran = run(&third, &url);
        assert!(ran.names("executed").contains(&"b".into()) && ran.names("executed").contains(&"c".into()), "{}", ran.out);
        assert_eq!(third.read("out").lines().count(), 2);
        let whole = third.flow(&["verify"]);
        assert!(!whole.out.contains("damaged"), "{}", whole.out);
    }
}

#[test]
fn entries_that_are_no_entries_count_as_none() {
    let remote = tempfile::tempdir().unwrap();
    let url = url(remote.path());
    run(&Project::new(CHAIN), &url);
    let entries = stored(remote.path(), "actions");
    fs::write(&entries[0], "{").unwrap();
    fs::write(&entries[1], "\u{0}".repeat(100)).unwrap();
    // Another action's entry.
    fs::write(&entries[2], "{\"format\":1}").unwrap();
    let second = Project::new(CHAIN);
    assert_eq!(run(&second, &url).names("executed"), ["a", "b", "c"]);
}

#[test]
fn verify_brings_damaged_objects_back() {
    let remote = tempfile::tempdir().unwrap();
    let url = url(remote.path());
    let project = Project::new(CHAIN);
    run(&project, &url);
    let object = project.files(".flow/objects").pop().unwrap();
    let good = fs::read(&object).unwrap();
    fs::remove_file(&object).unwrap();
    fs::write(&object, "damaged").unwrap();
    let ran = project.flow(&["verify", "--remote", &url]).expect(0);
    assert!(ran.out.contains("brought back from the remote cache"), "{}", ran.out);
    assert_eq!(fs::read(&object).unwrap(), good);
}

#[test]
fn a_read_only_remote_is_never_written() {
    let remote = tempfile::tempdir().unwrap();
    let pipeline = format!("{CHAIN}remote: {{ url: '{}', read_only: true }}\n", url(remote.path()));
    let project = Project::new(&pipeline);
    project.run(&[]).expect(0);
    assert!(stored(remote.path(), "actions").is_empty() && stored(remote.path(), "objects").is_empty());
}

#[test]
fn two_that_push_at_once_leave_one_whole_result() {
    let remote = tempfile::tempdir().unwrap();
    let url = url(remote.path());
    let runs: Vec<_> = (0..4)
        .map(|_| {
            let url = url.clone();
            std::thread::spawn(move || run(&Project::new(CHAIN), &url).err)
        })
        .collect();
    for run in runs {
        assert!(!run.join().unwrap().contains("warning"));
    }
    // Whoever comes later gets a whole chain.
    let after = Project::new(CHAIN);
    assert_eq!(run(&after, &url).names("executed"), [""; 0]);
    assert_eq!(after.read("out").lines().count(), 1);
}

/// An endpoint that answers every request with the same, after its headers are read; the address.
fn server(answer: impl Fn(&str, &mut TcpStream) + Send + Sync + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            std::thread::spawn(move || serve(stream, &answer));
        }
    });
    address
}

fn serve(mut stream: TcpStream, answer: &impl Fn(&str, &mut TcpStream)) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?);
    loop {
        let (mut request, mut length) = (String::new(), 0);
        lines.read_line(&mut request).ok().filter(|n| *n > 0)?;
        loop {
            let mut header = String::new();
            lines.read_line(&mut header).ok().filter(|n| *n > 2)?;
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if header == "\r\n" || lines.buffer().starts_with(b"\r\n") {
                break;
            }
        }
        lines.read_exact(&mut [0; 2]).ok()?;
        lines.read_exact(&mut vec![0; length]).ok()?;
        answer(&request, &mut stream);
    }
}

/// The environment in which an endpoint is an S3 that has so many seconds for an answer.
fn as_s3<'a>(address: &'a str, seconds: &'a str) -> [(&'static str, &'a str); 6] {
    [
        ("AWS_ENDPOINT_URL", address),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "very-secret"),
        ("AWS_REGION", "us-east-1"),
        ("FLOW_REMOTE_TIMEOUT", seconds),
    ]
}

fn reply(stream: &mut TcpStream, status: &str, more: &str, body: &str) {
    // Who asked may be gone.
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{more}content-length: {}\r\n\r\n{body}", body.len());
}

#[test]
fn a_remote_that_misbehaves_costs_one_warning_and_nothing_else() {
    type Answer = fn(&str, &mut TcpStream);
    let answers: [(&str, Answer); 5] = [
        ("hangs", |_, _| std::thread::sleep(Duration::from_secs(60))),
        ("fails", |_, s| reply(s, "500 Internal Server Error", "", "no")),
        ("refuses", |_, s| reply(s, "403 Forbidden", "", "<Error><Code>AccessDenied</Code></Error>")),
        ("breaks off", |_, s| {
            let _ =
                s.write_all(b"HTTP/1.1 200 OK\r\netag: x\r\nlast-modified: Tue, 24 Nov 2026 00:00:00 GMT\r\ncontent-length: 99\r\n\r\n{");
            let _ = s.shutdown(std::net::Shutdown::Both);
        }),
        ("is full", |request, s| {
            if request.starts_with("PUT") {
                reply(s, "507 Insufficient Storage", "", "");
            } else {
                reply(s, "404 Not Found", "", "");
            }
        }),
    ];
    for (what, answer) in answers {
        let project = Project::new(CHAIN);
        let began = Instant::now();
        let address = server(answer);
        let vars = as_s3(&address, "1");
        let ran = project.flow_with(&["run", "p.yaml", "--json", "--remote", "s3://bucket/prefix"], &vars).expect(0);
        assert_eq!(ran.names("executed"), ["a", "b", "c"], "{what}");
        assert_eq!(warnings(&ran), 1, "{what}: {}", ran.err);
        assert!(!ran.err.contains("very-secret"));
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: {:?}", began.elapsed());
        project.flow(&["verify"]).expect(0);
    }
}

/// What hangs is the transfer of an object that is wanted for publishing, then that of an input: neither holds up a run that
/// is to stop.
#[test]
fn a_run_that_waits_for_the_remote_hears_that_it_is_to_stop() {
    let remote = tempfile::tempdir().unwrap();
    run(&Project::new(CHAIN), &url(remote.path()));
    let folder = remote.path().to_owned();
    let (asked, wait) = std::sync::mpsc::channel();
    let address = server(move |request, s| {
        let name = request.split(' ').nth(1).and_then(|path| path.split_once("/prefix/")).map(|(_, name)| folder.join(name));
        match name.filter(|name| name.starts_with(folder.join("actions"))).map(fs::read_to_string) {
            Some(Ok(text)) => reply(s, "200 OK", "etag: x\r\nlast-modified: Tue, 24 Nov 2026 00:00:00 GMT\r\n", &text),
            Some(Err(_)) => reply(s, "404 Not Found", "", ""),
            None => {
                asked.send(()).unwrap();
                std::thread::sleep(Duration::from_secs(60));
            }
        }
    });
    let vars = as_s3(&address, "60");
    for pipeline in [CHAIN.to_owned(), CHAIN.replace("cat $t > $out", "cat $t $t > $out")] {
        let project = Project::new(&pipeline);
        let child = project.start_with(&["--remote", "s3://bucket/prefix"], &vars);
        wait.recv_timeout(Duration::from_secs(20)).expect("an object is asked for");
        let began = Instant::now();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::INT).unwrap();
        let ran = Project::wait(child);
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        assert!(ran.last()["interrupted"] == true, "{} {}", ran.out, ran.err);
    }
}

#[test]
fn a_remote_that_cannot_be_one_is_refused_before_anything_runs() {
    let project = Project::new(CHAIN);
    for bad in ["nonsense", "ftp://host/x", "file://relative"] {
        let ran = project.run(&["--remote", bad]).expect(2);
        assert!(ran.err.contains(bad) && !ran.out.contains("stage_started"), "{}", ran.err);
    }
}

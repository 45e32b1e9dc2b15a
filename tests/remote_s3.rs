//! The remote cache over a real S3 endpoint (`tests/s3_server.sh`): conditional puts, multipart uploads, pushers at once.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use support::{Project, Ran};

/// A server with an empty bucket `flow-cache`, until dropped.
struct S3 {
    server: Child,
    port: u16,
}

impl S3 {
    /// None where it cannot be installed here.
    fn start() -> Option<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/s3_server.sh");
        let mut command = Command::new("bash");
        command.arg(script).arg(port.to_string()).stdout(Stdio::piped()).process_group(0);
        let mut server = command.spawn().ok()?;
        let mut line = String::new();
        BufReader::new(server.stdout.take()?).read_line(&mut line).ok()?;
        let started = Self { server, port };
        line.starts_with("ready ").then_some(started)
    }

    fn run(&self, project: &Project, prefix: &str) -> Ran {
        let endpoint = format!("http://127.0.0.1:{}", self.port);
        let environment = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_ACCESS_KEY_ID", "test-key"),
            ("AWS_SECRET_ACCESS_KEY", "test-secret"),
            ("AWS_REGION", "us-east-1"),
            ("FLOW_REMOTE_TIMEOUT", "20"),
        ];
        let url = format!("s3://flow-cache/{prefix}");
        let ran = project.flow_with(&["run", "p.yaml", "--json", "--remote", &url], &environment).expect(0);
        assert!(!format!("{}{}", ran.out, ran.err).contains("test-secret"));
        ran
    }

    /// A bare request, as no client of ours would send it; gives the body.
    fn request(&self, head: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        write!(stream, "{head} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// Names and sizes of what the bucket holds below a prefix.
    fn stored(&self, prefix: &str) -> Vec<(String, u64)> {
        let list = self.request(&format!("GET /flow-cache?list-type=2&prefix={prefix}/"), b"");
        let part = |text: &str, tag: &str| text.split_once(&format!("<{tag}>"))?.1.split_once('<').map(|p| p.0.to_owned());
        let items = list.split("<Contents>").skip(1);
        items.map(|i| (part(i, "Key").unwrap(), part(i, "Size").unwrap().parse().unwrap())).collect()
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&self.server), rustix::process::Signal::KILL);
        let _ = self.server.wait();
    }
}

/// `big` is sent in several parts.
const PIPELINE: &str = "flow: 1\nstages:\n  a: { use: shell, with: { run: 'mkdir $out; date +%s%N > $out/x; echo y > $out/y' } }\n  big: { use: shell, in: { t: a }, with: { run: 'head -c 40000000 /dev/urandom > $out' } }\n  c: { use: shell, in: { t: big }, with: { run: 'tail -c 100000 $t > $out' } }\npublish: { out: c, big: big }\n";

#[test]
fn over_a_real_endpoint() {
    let Some(s3) = S3::start() else {
        support::skipped("no S3 server can be started here (tests/s3_server.sh)");
        assert!(std::env::var_os("FLOW_REQUIRE_SERVERS").is_none(), "FLOW_REQUIRE_SERVERS is set");
        return;
    };
    a_second_machine_takes_everything(&s3);
    runs_at_once_push_the_same_results(&s3);
}

fn a_second_machine_takes_everything(s3: &S3) {
    let first = Project::new(PIPELINE);
    let ran = s3.run(&first, "team/cache");
    assert_eq!(ran.names("executed"), ["a", "big", "c"]);
    assert!(!ran.err.contains("warning"), "{}", ran.err);
    assert_eq!(s3.stored("team/cache/actions").len(), 3);
    let second = Project::new(PIPELINE);
    let ran = s3.run(&second, "team/cache");
    assert_eq!((ran.names("executed").len(), ran.names("reused").len()), (0, 3), "{}", ran.err);
    for file in ["big", "out"] {
        assert!(fs::read(second.path(file)).unwrap() == fs::read(first.path(file)).unwrap(), "{file} differs");
    }
    assert_eq!(second.files(".flow/objects").len(), 2, "only what is published");
    // Nothing that a bucket holds is believed.
    let (large, _) = s3.stored("team/cache/objects").into_iter().find(|o| o.1 == 40_000_000).expect("the large object");
    let mut bytes = fs::read(first.path("big")).unwrap();
    bytes[12_345_678] ^= 1;
    s3.request(&format!("PUT /flow-cache/{large}"), &bytes);
    let third = Project::new(PIPELINE);
    let ran = s3.run(&third, "team/cache");
    assert_eq!(ran.err.matches("warning: remote cache").count(), 1, "{}", ran.err);
    assert!(ran.names("executed").contains(&"big".to_owned()));
    assert!(fs::read(third.path("big")).unwrap() != bytes);
}

fn runs_at_once_push_the_same_results(s3: &S3) {
    let text = "flow: 1\nstages:\n  a: { use: shell, matrix: { n: [1, 2, 3, 4, 5, 6, 7, 8] }, with: { run: 'echo ${n} > $out' } }\n";
    let projects: Vec<Project> = (0..3).map(|_| Project::new(text)).collect();
    std::thread::scope(|scope| {
        for project in &projects {
            scope.spawn(|| assert!(!s3.run(project, "shared").err.contains("warning")));
        }
    });
    assert_eq!(s3.stored("shared/actions").len(), 8);
    assert_eq!(s3.run(&Project::new(text), "shared").names("reused").len(), 8);
}

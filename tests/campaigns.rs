//! Long campaigns against the cache: kills, damage, a full disk. Each is seeded and short here; `.ci/soak` asks for
//! more rounds with `FLOW_CAMPAIGN=ROUNDS` (and another seed with `FLOW_SEED`).

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{Project, fixture};

/// Files, directories, children with state, commands, and the same bytes from several stages.
const PIPELINE: &str = "\
flow: 1
vars: { word: one }
stages:
  corpus: { use: fix.text, with: { path: a.txt, holdout: 0.1 } }
  loud: { use: fix.upper, in: { text: corpus.train } }
  words: { use: fix.words, in: { text: loud } }
  split: { use: fix.split, in: { words: words } }
  slow: { use: fix.slow, in: { text: loud }, with: { steps: 12 } }
  a: { use: shell, matrix: { n: [1, 2, 3, 4, 5, 6] }, in: { t: slow }, with: { run: 'sleep 0.0${n}; echo ${n} ${word} > $out; cat $t >> $out' } }
  tree: { use: shell, in: { parts: a, w: words }, with: { run: 'mkdir -p $out/deep; cat $parts > $out/deep/all; sleep 0.03; find $w -type f | wc -l > $out/count' } }
  last: { use: shell, in: { t: tree, s: split }, with: { run: 'cat $t/deep/all $t/count $s > $out' } }
publish: { out/last: last, out/tree: tree, out/split: split }
";

fn rounds(default: usize) -> usize {
    std::env::var("FLOW_CAMPAIGN").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// splitmix64: seeded, so that a failing round can be run again.
struct Random(u64);

impl Random {
    fn new(salt: u64) -> Self {
        Self(std::env::var("FLOW_SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(1) * 1000 + salt)
    }
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// Every published file with its content.
fn published(project: &Project) -> BTreeMap<PathBuf, Vec<u8>> {
    let root = project.path("");
    project.files("out").into_iter().map(|p| (p.strip_prefix(&root).unwrap().to_owned(), fs::read(p).unwrap())).collect()
}

fn undisturbed(word: &str) -> BTreeMap<PathBuf, Vec<u8>> {
    let project = Project::new(PIPELINE);
    project.run(&["--var", &format!("word={word}")]).expect(0);
    published(&project)
}

#[test]
fn killed_at_any_moment_a_run_continues_and_ends_with_the_same_bytes() {
    let mut random = Random::new(1);
    let project = Project::new(PIPELINE);
    let (mut kills, mut finished, mut ends) = (0, Vec::<String>::new(), 0);
    for round in 0..rounds(25) {
        // Another word now and then: new work, beside old results.
        let word = format!("w{}", round / 4);
        let mut command = Command::new(fixture());
        command.args(["run", "p.yaml", "--json", "--var", &format!("word={word}")]).current_dir(project.path(""));
        command.env("FLOW_DEVICE", "cpu").stdout(Stdio::piped()).stderr(Stdio::null());
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().unwrap();
        std::thread::sleep(Duration::from_micros(random.below(250_000) as u64));
        let group = rustix::process::Pid::from_child(&child);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let mut out = String::new();
        child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        let status = child.wait().unwrap();
        kills += usize::from(status.code().is_none());
        ends += usize::from(status.code() == Some(0));
        let events: Vec<serde_json::Value> = out.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        if round % 4 == 0 {
            finished.clear();
        }
        for event in &events {
            let stage = event["stage"].as_str().unwrap_or_default().to_owned();
            match event["event"].as_str() {
                // What was reported done is done for good.
                Some("stage_started") => assert!(!finished.contains(&stage), "round {round}: {stage} was finished and runs again"),
                Some("stage_finished") => finished.push(stage),
                Some("stage_failed") => panic!("round {round}: {event}"),
                _ => {}
            }
        }
    }
    assert!(kills > 0, "no run was killed ({ends} ended first)");
    // Tasks of a word wait for a run with that word.
    let last = (rounds(25) - 1) / 4;
    for word in 0..=last {
        project.run(&["--var", &format!("word=w{word}")]).expect(0);
    }
    assert_eq!(published(&project), undisturbed(&format!("w{last}")));
    let left: Vec<_> = project.files(".flow/tasks");
    assert!(left.is_empty(), "{left:?}");
    eprintln!("{kills} kills, {ends} runs ended before");
}

/// All files of the cache that a fault may hit.
fn victims(project: &Project) -> Vec<PathBuf> {
    let mut files = project.files(".flow/objects");
    files.extend(project.files(".flow/actions"));
    files.extend(project.files(".flow/runs"));
    files.extend(["index.db", "index.db-wal"].map(|n| project.path(".flow").join(n)).into_iter().filter(|p| p.exists()));
    files
}

/// Flips, truncates, empties or deletes a file.
fn damage(path: &Path, random: &mut Random) -> &'static str {
    let length = fs::metadata(path).map_or(0, |m| m.len());
    let mode = fs::metadata(path).unwrap().permissions().mode();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let what = match random.below(4) {
        0 if length > 0 => {
            let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            for _ in 0..=random.below(40) {
                let at = random.below(length as usize) as u64;
                let mut byte = [0];
                file.seek(SeekFrom::Start(at)).unwrap();
                file.read_exact(&mut byte).unwrap();
                file.seek(SeekFrom::Start(at)).unwrap();
                file.write_all(&[byte[0] ^ (1 << random.below(8))]).unwrap();
            }
            "flipped"
        }
        1 if length > 0 => {
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(random.below(length as usize) as u64).unwrap();
            "truncated"
        }
        2 => {
            fs::write(path, b"").unwrap();
            "emptied"
        }
        _ => {
            fs::remove_file(path).unwrap();
            return "deleted";
        }
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    what
}

#[test]
fn whatever_is_damaged_is_made_again_and_never_served() {
    let mut random = Random::new(2);
    let expected = undisturbed("one");
    let project = Project::new(PIPELINE);
    project.run(&[]).expect(0);
    for round in 0..rounds(25) {
        let mut done = Vec::new();
        for _ in 0..=random.below(4) {
            let files = victims(&project);
            let victim = &files[random.below(files.len())];
            done.push(format!("{} {}", damage(victim, &mut random), victim.strip_prefix(project.path("")).unwrap().display()));
        }
        let _ = fs::remove_dir_all(project.path("out"));
        let ran = project.run(&[]);
        assert_eq!(ran.code, Some(0), "round {round}, {done:?}\n{}\n{}", ran.out, ran.err);
        assert_eq!(published(&project), expected, "round {round}, {done:?}");
    }
}

/// Runs `script` where a tmpfs of `size` stands at `dir`; `None` where none can be mounted.
fn on_small_disk(dir: &Path, size: &str, script: &str) -> Option<std::process::Output> {
    fs::create_dir_all(dir).unwrap();
    let mount = format!("mount -t tmpfs -o size={size} none {} && cd {} && {script}", dir.display(), dir.display());
    let namespaces: [&[&str]; 2] = [&["--mount"], &["--mount", "--user", "--map-root-user"]];
    namespaces.iter().find_map(|flags| {
        let probe = Command::new("unshare").args(*flags).args(["sh", "-c", &format!("mount -t tmpfs none {}", dir.display())]).output();
        probe.is_ok_and(|o| o.status.success()).then(|| Command::new("unshare").args(*flags).args(["sh", "-c", &mount]).output().unwrap())
    })
}

#[test]
fn a_full_disk_is_a_clean_failure_and_the_cache_stays_whole() {
    let project = Project::new(PIPELINE);
    let disk = project.path("disk");
    let text = "flow: 1\nstages:\n  small: { use: shell, with: { run: 'head -c 100000 /dev/zero > $out' } }\n  big: { use: shell, in: { s: small }, with: { run: 'cat $s > /dev/null; sleep 0.3; head -c 50000000 /dev/urandom > $out' } }\n";
    project.write("full.yaml", text);
    let flow = fixture().display().to_string();
    let root = project.path("").display().to_string();
    // Fails, after what it reads is kept for good; then there is room, and the run continues with what it has.
    let script = format!(
        "{flow} run {root}/full.yaml --json --cache-dir cache > {root}/first; echo $? > {root}/code; mount -o remount,size=200m . ; {flow} run {root}/full.yaml --json --cache-dir cache > {root}/second; echo $? >> {root}/code"
    );
    if on_small_disk(&disk, "4m", &script).is_none() {
        support::skipped("no tmpfs can be mounted here");
        return;
    }
    assert_eq!(project.read("code"), "1\n0\n", "{:.3000}\n{:.3000}", project.read("first"), project.read("second"));
    let first = project.read("first");
    assert!(first.contains("No space left on device"), "{first}");
    let last: serde_json::Value = serde_json::from_str(project.read("second").lines().last().unwrap()).unwrap();
    assert_eq!((&last["executed"], &last["reused"]), (&serde_json::json!(["big"]), &serde_json::json!(["small"])));
    // A disk on which not even the index fits is told before the first stage.
    let script = format!(
        "head -c 4000000 /dev/zero > rest; {flow} run {root}/full.yaml --cache-dir cache > {root}/none 2>&1; echo $? > {root}/code"
    );
    on_small_disk(&disk, "200k", &script).unwrap();
    let said = project.read("none");
    assert!(project.read("code") == "4\n" && !said.contains("runs:") && !said.contains("panicked"), "{said}");
}

#[test]
fn a_disk_that_fills_at_any_size_never_tears_the_cache() {
    let project = Project::new(PIPELINE);
    let expected = undisturbed("one");
    let flow = fixture().display().to_string();
    let root = project.path("").display().to_string();
    let mut random = Random::new(3);
    let (mut failed, mut reasons) = (0, Vec::new());
    for round in 0..rounds(4) {
        let size = 40 + random.below(600);
        let script = format!(
            "FLOW_DEVICE=cpu {flow} run {root}/p.yaml --json --cache-dir cache > {root}/first 2>&1; echo $? > {root}/code; mount -o remount,size=100m . ; FLOW_DEVICE=cpu {flow} run {root}/p.yaml --json --cache-dir cache > {root}/second 2>&1; echo $? >> {root}/code"
        );
        if on_small_disk(&project.path("disk"), &format!("{size}k"), &script).is_none() {
            support::skipped("no tmpfs can be mounted here");
            return;
        }
        let code = project.read("code");
        assert!(code.ends_with("\n0\n"), "round {round}, {size} KiB: {code}\n{}\n{}", project.read("first"), project.read("second"));
        if !code.starts_with('0') {
            failed += 1;
            let first = project.read("first");
            assert!(
                // The last is how a shell's own `echo` says it.
                ["No space left on device", "disk is full", "disk I/O", "echo: I/O error"].iter().any(|w| first.contains(w)),
                "{size} KiB: {first}"
            );
            assert!(!first.contains("panicked"), "{first}");
            reasons.push(size);
        }
        assert_eq!(published(&project), expected, "round {round}, {size} KiB");
        let _ = fs::remove_dir_all(project.path("out"));
    }
    eprintln!("{failed} runs failed for want of space, at {reasons:?} KiB");
}

/// Several runs of the same work, some of them killed, beside readers that never wait for them.
#[test]
fn many_processes_at_once_do_everything_once() {
    let mut random = Random::new(4);
    let project = Project::new(PIPELINE);
    for round in 0..rounds(25).div_ceil(8) {
        let word = format!("word=w{round}");
        let _ = fs::remove_file(project.path("executions"));
        let start = || {
            let mut command = Command::new(fixture());
            command.args(["run", "p.yaml", "--json", "--var", &word]).current_dir(project.path(""));
            command.env("FLOW_DEVICE", "cpu").env("FLOW_FIXTURE_LOG", project.path("executions"));
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        let mut runs: Vec<_> = (0..4).map(|_| start()).collect();
        let killed = round % 2 == 1;
        if killed {
            std::thread::sleep(Duration::from_micros(random.below(150_000) as u64));
            let _ = rustix::process::kill_process_group(rustix::process::Pid::from_child(&runs[0]), rustix::process::Signal::KILL);
        }
        let mut longest = Duration::ZERO;
        while runs.iter_mut().any(|r| r.try_wait().unwrap().is_none()) {
            for args in [&["status", "p.yaml"][..], &["explain", "p.yaml", "slow"], &["log", "p.yaml"]] {
                let began = std::time::Instant::now();
                project.flow(args).expect(0);
                longest = longest.max(began.elapsed());
            }
        }
        // A writer holds locks for as long as `slow` runs, some 0.3 s a word; a reader that waited would sum them up.
        assert!(longest < Duration::from_secs(5), "round {round}: a reader took {longest:?}");
        let ended: Vec<_> = runs.into_iter().map(|r| r.wait_with_output().unwrap()).collect();
        for output in ended.iter().skip(usize::from(killed)) {
            let text = [output.stdout.as_slice(), &output.stderr].concat();
            assert!(output.status.success(), "round {round}: {}", String::from_utf8_lossy(&text));
        }
        let mut executed: Vec<String> = Vec::new();
        for line in ended.iter().flat_map(|o| std::str::from_utf8(&o.stdout).unwrap().lines()) {
            let event: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
            if event["event"] == "stage_finished" {
                executed.push(event["stage"].as_str().unwrap().to_owned());
            }
        }
        let all = executed.len();
        executed.sort();
        executed.dedup();
        assert_eq!(executed.len(), all, "round {round}: a stage finished in two processes: {executed:?}");
    }
    let last = format!("w{}", rounds(25).div_ceil(8) - 1);
    project.run(&["--var", &format!("word={last}")]).expect(0);
    assert_eq!(published(&project), undisturbed(&last));
    assert!(project.files(".flow/tasks").is_empty());
}

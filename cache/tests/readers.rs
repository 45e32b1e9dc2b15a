//! What a cache reads that another machine or a damaged disk may have written: answered or refused, never a panic, and
//! nothing that is not what its name says.

use flow_cache::digest::{ActionKey, Digest};
use flow_cache::manifest::{Entry, Manifest, check_path};
use flow_cache::remote::read_entry;
use flow_cache::{ActionEntry, ActionFile, ActionProvenance, Artifact};
use proptest::prelude::*;

fn entry() -> impl Strategy<Value = Entry> {
    (prop::collection::vec("[a-zA-Z0-9 ._é-]{1,12}", 1..4), any::<u64>(), any::<bool>(), any::<[u8; 32]>()).prop_map(
        |(parts, size, executable, digest)| Entry {
            path: parts.join("/"),
            digest: Digest::from_bytes(digest),
            size: size >> 1,
            executable,
        },
    )
}

fn action(key: [u8; 32]) -> ActionFile {
    let artifact = Artifact { digest: Digest::of(b"x"), size: 1, tree: true };
    ActionFile {
        entry: ActionEntry {
            format: 1,
            key: ActionKey(Digest::from_bytes(key)),
            kind: "a.b".into(),
            outputs: [("out".to_owned(), artifact)].into(),
            provenance: ActionProvenance { stage: "s".into(), seconds: 1.5, ..ActionProvenance::default() },
        },
        parts: serde_json::json!({"params": {"tau": 1.3}}),
    }
}

proptest! {
    /// What was written is read back; what is read has only paths inside the directory.
    #[test]
    fn manifests(entries in prop::collection::vec(entry(), 0..8), cut in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut entries: Vec<Entry> = entries.into_iter().filter(|e| check_path(&e.path).is_ok()).collect();
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        entries.dedup_by(|a, b| a.path == b.path);
        let manifest = Manifest::new(entries);
        let text = manifest.encode();
        let name = Digest::of(text.as_bytes());
        prop_assert_eq!(&Manifest::decode(&name, &text).unwrap(), &manifest);
        let mut bytes = text.into_bytes();
        let at = cut.index(bytes.len());
        bytes[at] = byte;
        for damaged in [&bytes[..], &bytes[..at]] {
            let given = String::from_utf8_lossy(damaged);
            if let Ok(read) = Manifest::decode(&name, &given) {
                prop_assert!(read.entries().iter().all(|e| check_path(&e.path).is_ok()));
                prop_assert_eq!(read.encode(), given, "two texts for one manifest");
            }
        }
    }

    #[test]
    fn manifests_of_anything(text in "(flow-manifest 1\n)?[0-9a-f x./\n-]{0,200}") {
        let _ = Manifest::decode(&Digest::of(text.as_bytes()), &text);
    }

    /// A remote entry is taken under its own key only, whatever bytes were changed.
    #[test]
    fn remote_entries(key in any::<[u8; 32]>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let file = action(key);
        let wanted = file.entry.key;
        let whole = serde_json::to_vec(&file).unwrap();
        prop_assert!(read_entry(&wanted, &whole).is_some());
        prop_assert!(read_entry(&ActionKey(Digest::of(&key)), &whole).is_none());
        let mut bytes = whole;
        let at = at.index(bytes.len());
        bytes[at] = byte;
        for damaged in [&bytes[..], &bytes[..at]] {
            if let Some(read) = read_entry(&wanted, damaged) {
                prop_assert_eq!(read.entry.key, wanted);
                prop_assert_eq!(read.entry.format, 1);
            }
        }
    }

    #[test]
    fn digests(text in "[0-9a-fA-Fg]{0,70}") {
        if let Ok(digest) = text.parse::<Digest>() {
            prop_assert_eq!(digest.hex(), text.to_lowercase());
        }
    }
}

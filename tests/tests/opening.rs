//! Opening a large folder of weights reads what it needs of them, and nothing else.
#![cfg(target_os = "linux")]

use std::{
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use serde_json::json;
use ttft_models::{
    Network,
    weights::{MappedFile, Tensors},
    zoo,
};

/// A folder of a network's shape in BF16 whose tensors are holes in their file, which take no room on the disk.
fn holes(dir: &Path, name: &str) -> PathBuf {
    let config = zoo::network(name).unwrap();
    fs::write(dir.join("config.json"), config.to_json("").to_string()).unwrap();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for t in config.tensors() {
        let begin = end;
        end += 2 * t.elements();
        header.insert(t.name, json!({ "dtype": "BF16", "shape": t.shape, "data_offsets": [begin, end] }));
    }
    let mut header = serde_json::to_vec(&header).unwrap();
    header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
    let path = dir.join("model.safetensors");
    let mut file = File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.set_len(8 + header.len() as u64 + end).unwrap();
    path
}

/// Whether the system has been told that pages of a mapping of the file are read one by one.
fn singly(path: &Path) -> bool {
    let path = path.canonicalize().unwrap().display().to_string();
    let mut ours = false;
    fs::read_to_string("/proc/self/smaps").unwrap().lines().any(|line| {
        let flags = line.strip_prefix("VmFlags:").filter(|_| std::mem::take(&mut ours));
        ours |= line.ends_with(&path);
        flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "rr"))
    })
}

/// Of 6 GB only the header and the norms are needed. The time is printed, not judged:
/// `cargo test --release -p ttft-tests --test opening -- --nocapture`.
#[test]
fn opening_reads_no_matrix() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = holes(dir.path(), "Llama-3.2-3B");
    let resident = || MappedFile::open(&path).unwrap().resident_pages().unwrap();
    let (before, pages) = resident();
    assert!(before < 64, "{before} pages are in memory before anything was opened");
    let clock = Instant::now();
    let network = Network::load(dir.path()).unwrap();
    let time = clock.elapsed();
    let (after, _) = resident();
    println!(
        "opened {:.2} GB in {:.2} ms; {:.2} MB of it are in memory",
        network.mapped_bytes() as f64 * 1e-9,
        time.as_secs_f64() * 1e3,
        after as f64 * 4096e-6
    );
    assert!(network.mapped_bytes() > 6_000_000_000 && network.copied_bytes() == 0);
    // The norms are 57 vectors of 6 KB, on 3 pages at most; the header has 30 KB.
    assert!(after <= before + 57 * 3 + 16, "{after} of {pages} pages are in memory, {before} of them before");
    // Once the network is open, the system reads ahead again.
    assert!(!singly(&path));
    drop(network);
    let tensors = Tensors::file(&path).unwrap();
    assert!(singly(&path));
    drop(tensors);
    // What is read is seen.
    let file = MappedFile::open(&path).unwrap();
    assert_eq!(file.bytes()[file.bytes().len() / 2], 0);
    assert!(resident().0 > after);
}

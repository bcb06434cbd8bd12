//! Notes which compiler and which source revision the program is built from.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

fn output(program: &str, args: &[&str], dir: &Path) -> Option<String> {
    let out = Command::new(program).args(args).current_dir(dir).output().ok()?;
    out.status.success().then(|| String::from_utf8(out.stdout).ok())?.map(|s| s.trim().to_owned())
}

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = here.parent().unwrap_or(&here);
    let git = |args: &[&str]| output("git", args, root);
    let set = |name: &str, value: Option<String>| println!("cargo::rustc-env={name}={}", value.unwrap_or_default());

    // Only a repository whose top is this workspace: a copy inside someone else's repository has no revision.
    let ours = git(&["rev-parse", "--show-toplevel"])
        .is_some_and(|top| Path::new(&top).canonicalize().ok() == root.canonicalize().ok());
    let revision = ours.then(|| git(&["rev-parse", "HEAD"])).flatten();
    let dirty = ours.then(|| git(&["status", "--porcelain", "--untracked-files=no"])).flatten();
    set("TTFT_BUILD_REVISION", revision);
    set("TTFT_BUILD_DIRTY", dirty.map(|changes| (!changes.is_empty()).to_string()));
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    set("TTFT_BUILD_RUSTC", output(&rustc, &["--version"], root));

    // The revision is noted again when HEAD moves or a source of the program changes.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = ours.then(|| git(&["rev-parse", "--git-path", name])).flatten() {
            let path = root.join(path);
            if path.exists() {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
    for source in ["Cargo.toml", "Cargo.lock", "kernels", "models", "bench", "reports"] {
        println!("cargo::rerun-if-changed={}", root.join(source).display());
    }
}

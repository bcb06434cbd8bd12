//! The examples of docs/examples, run with stand-ins for the schedulers: every task leaves a record of its own, and one page
//! holds them all.
#![cfg(unix)]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples").join(name);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A folder to work in, with a `ttft` in `bin` that measures tiny networks at one size instead of the preset quick, and a
/// `cargo` that has nothing to do.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let runner = std::env::var("TTFT_TEST_RUNNER").unwrap_or_default();
        let ttft = format!(
            "#!/bin/sh\nfor a; do shift; [ \"$a\" != quick ] || a=calibrate; set -- \"$@\" \"$a\"; done\n\
             case $1 in bench) shift; set -- bench --tiny --threads 1 --rounds 3 --processes 1 \"$@\";; esac\n\
             exec {runner} '{}' \"$@\"\n",
            env!("CARGO_BIN_EXE_ttft")
        );
        fs::create_dir(place.path("bin")).unwrap();
        for (name, text) in [("ttft", ttft.as_str()), ("cargo", "#!/bin/sh\n")] {
            let path = place.path("bin").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command of the shell in this place; it must succeed.
    fn bash(&self, script: &str, variables: &[(&str, &str)]) {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).current_dir(self.dir.path()).env("PATH", path);
        for name in ["TTFT_SCENARIO", "TTFT_OUT"] {
            bash.env_remove(name);
        }
        bash.env("TTFT_WEIGHTS", self.path("weights")).envs(variables.iter().copied());
        let out = bash.output().expect("bash starts");
        assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// The names of the records in a folder; each holds cells.
    fn records(&self, folder: &str) -> Vec<String> {
        let files = fs::read_dir(self.path(folder)).unwrap().flatten().map(|f| f.path());
        let mut records: Vec<PathBuf> = files.filter(|f| f.extension().is_some_and(|e| e == "jsonl")).collect();
        records.sort();
        for record in &records {
            assert!(fs::read_to_string(record).unwrap().lines().count() > 1, "{} holds no cell", record.display());
        }
        records.iter().map(|r| r.file_name().unwrap().to_string_lossy().into_owned()).collect()
    }

    fn page(&self, folder: &str) {
        self.bash(&format!("ttft report {folder}/*.jsonl --html machines.html"), &[]);
        assert!(fs::read_to_string(self.path("machines.html")).unwrap().contains("The machines"));
    }
}

#[test]
fn tasks_of_a_slurm_array_leave_a_record_each_and_a_requeued_one_continues() {
    let place = Place::new();
    let script = example("slurm.sh");
    let task = |id: &str| {
        let weights = place.path(&format!("weights-{id}"));
        let variables =
            [("SLURM_ARRAY_JOB_ID", "4711"), ("SLURM_ARRAY_TASK_ID", id), ("TTFT_WEIGHTS", weights.to_str().unwrap())];
        place.bash(&script, &variables);
    };
    thread::scope(|scope| ["0", "1"].map(|id| scope.spawn(move || task(id))).map(|t| t.join().unwrap()));
    assert_eq!(place.records("ttft-records"), ["quick-4711-0.jsonl", "quick-4711-1.jsonl"]);
    let before = fs::read(place.path("ttft-records/quick-4711-0.jsonl")).unwrap();
    task("0");
    assert_eq!(fs::read(place.path("ttft-records/quick-4711-0.jsonl")).unwrap(), before, "it was finished");
    place.page("ttft-records");
}

#[test]
fn a_matrix_of_github_leaves_a_record_for_each_machine_and_makes_a_page() {
    let place = Place::new();
    let text = example("github.yml");
    let machines = text.lines().find_map(|l| l.trim().strip_prefix("os: [")?.strip_suffix(']')).expect("a matrix");
    let machines: Vec<&str> = machines.split(", ").collect();
    let (measure, page) = text.split_once("\n  page:\n").expect("two jobs");
    let steps =
        |job: &str| job.lines().filter_map(|l| l.trim().strip_prefix("- run: ").map(str::to_owned)).collect::<Vec<_>>();
    assert!(steps(measure).len() == 3 && steps(page).len() == 2);
    for (machine, attempt) in machines.iter().map(|m| (*m, "1")).chain([(machines[0], "2")]) {
        for step in steps(measure) {
            let known = [("matrix.os", machine), ("github.run_id", "99"), ("github.run_attempt", attempt)];
            let step =
                known.iter().fold(step, |step, (name, value)| step.replace(&format!("${{{{ {name} }}}}"), value));
            assert!(!step.contains("${{"), "{step}");
            place.bash(&step, &[]);
        }
    }
    // What uploading and downloading do.
    place.bash("mkdir records && cp ./*.jsonl records/", &[]);
    assert_eq!(place.records("records").len(), machines.len() + 1);
    steps(page).iter().for_each(|step| place.bash(step, &[]));
    assert!(place.path("machines.html").is_file());
}

#[test]
fn pods_of_a_kubernetes_job_leave_a_record_each() {
    let place = Place::new();
    let text = example("kubernetes.yml");
    let args = text.lines().find_map(|l| l.trim().strip_prefix("args: ")).expect("arguments");
    let args: Vec<String> = serde_json::from_str(args).expect("a list in the form of JSON");
    fs::create_dir(place.path("records")).unwrap();
    for pod in ["ttft-x7k2p-0-abcde", "ttft-x7k2p-1-fghij", "ttft-x7k2p-1-klmno"] {
        let mounted = |arg: &String| {
            let arg = arg.replace("$(POD_NAME)", pod);
            let place = place.dir.path().display();
            match arg.starts_with('/') {
                true => format!("'{place}{arg}'"),
                false => arg,
            }
        };
        let args: Vec<String> = args.iter().map(mounted).collect();
        place.bash(&format!("ttft {}", args.join(" ")), &[]);
    }
    assert_eq!(place.records("records").len(), 3);
    place.page("records");
}

//! What criterion's command line asks for, as far as work has to be planned around it. Criterion itself stays the
//! judge: it parses the same arguments again.

use regex::Regex;

/// Criterion's options that take a value; everything else that starts with a dash is a switch.
const VALUED: &[&str] = &[
    "--color",
    "-c",
    "--save-baseline",
    "-s",
    "--baseline",
    "-b",
    "--baseline-lenient",
    "--format",
    "--profile-time",
    "--load-baseline",
    "--sample-size",
    "--warm-up-time",
    "--measurement-time",
    "--nresamples",
    "--noise-threshold",
    "--confidence-level",
    "--significance-level",
    "--plotting-backend",
    "--output-format",
];

/// The arguments that matter.
#[derive(Clone, Debug, Default)]
pub struct CriterionArgs {
    switches: Vec<String>,
    values: Vec<(String, String)>,
    filter: Option<String>,
}

impl CriterionArgs {
    /// From this program's command line. Of an argument that is no UTF-8 criterion says so.
    pub fn from_env() -> CriterionArgs {
        Self::parse(std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()))
    }

    /// From the command line, without the program's name.
    pub fn parse(args: impl IntoIterator<Item = String>) -> CriterionArgs {
        let mut out = CriterionArgs::default();
        let mut args = args.into_iter();
        let mut only_filters = false;
        while let Some(arg) = args.next() {
            if only_filters || !arg.starts_with('-') {
                out.filter.get_or_insert(arg);
            } else if arg == "--" {
                only_filters = true;
            } else if let Some((name, value)) = arg.split_once('=').filter(|(n, _)| VALUED.contains(n)) {
                out.values.push((name.into(), value.into()));
            } else if VALUED.contains(&arg.as_str()) {
                out.values.push((arg, args.next().unwrap_or_default()));
            } else {
                out.switches.push(arg);
            }
        }
        out
    }

    fn has(&self, switch: &str) -> bool {
        self.switches.iter().any(|s| s == switch)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Runs every benchmark once, untimed: `--test`, or `cargo test` (without `--bench`).
    pub fn test(&self) -> bool {
        self.has("--test") || !self.has("--bench")
    }

    /// Whether benchmarks run at all: not with `--list`, `--load-baseline`, `--help`, `--version`.
    pub fn runs(&self) -> bool {
        let idle = ["--list", "--help", "-h", "--version", "-V", "--ignored"].iter().any(|s| self.has(s));
        !idle && self.value("--load-baseline").is_none()
    }

    /// `--quick`: samples until they agree, without a warm-up.
    pub fn quick(&self) -> bool {
        self.has("--quick")
    }

    /// `--profile-time`: runs without measuring.
    pub fn profile(&self) -> bool {
        self.value("--profile-time").is_some()
    }

    /// `--measurement-time` was given.
    pub fn measurement_time(&self) -> bool {
        self.value("--measurement-time").is_some()
    }

    /// `--warm-up-time` was given.
    pub fn warm_up_time(&self) -> bool {
        self.value("--warm-up-time").is_some()
    }

    /// Samples of each benchmark.
    pub fn sample_size(&self) -> usize {
        self.value("--sample-size").and_then(|v| v.parse().ok()).unwrap_or(10)
    }

    /// Whether there is a filter.
    pub fn filtered(&self) -> bool {
        self.filter.is_some()
    }

    /// Whether the filter selects this id.
    pub fn selects(&self, id: &str) -> bool {
        match &self.filter {
            None => true,
            Some(f) if self.has("--exact") => f == id,
            // Criterion refuses a filter that is no regular expression.
            Some(f) => Regex::new(f).is_ok_and(|r| r.is_match(id)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> CriterionArgs {
        CriterionArgs::parse(line.split_whitespace().map(Into::into))
    }

    #[test]
    fn modes() {
        assert!(parse("").test() && parse("--bench --test").test() && !parse("--bench").test());
        assert!(
            parse("--bench").runs() && !parse("--bench --list").runs() && !parse("--load-baseline x --bench").runs()
        );
        assert!(parse("--bench --quick").quick() && parse("--bench --profile-time 3").profile());
        assert_eq!(parse("--sample-size 25 --bench").sample_size(), 25);
        assert_eq!(parse("--sample-size=30").sample_size(), 30);
        assert_eq!(parse("--bench").sample_size(), 10);
        assert!(parse("--measurement-time 5").measurement_time() && !parse("").measurement_time());
        assert!(parse("--warm-up-time=5").warm_up_time() && !parse("--measurement-time 5").warm_up_time());
    }

    #[test]
    fn filters() {
        assert!(parse("--bench").selects("ttft/x"));
        let a = parse("--bench kvp/b[14] --save-baseline b4");
        assert!(a.selects("ttft/P/kvp/b4/p64") && a.selects("ttft/P/kvp/b1/p64") && !a.selects("ttft/P/kvp/b8/p64"));
        assert!(!parse("--save-baseline kvp base").selects("ttft/P/kvp/b4/p64"));
        assert!(parse("--exact ttft/x").selects("ttft/x") && !parse("--exact ttft/x").selects("ttft/x/y"));
    }
}

//! What the documents say of who knows whom: no module of a crate imports what imports it, among its files and among the
//! modules that its root names; `unsafe` has its places.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// The crates whose imports are free of circles.
const CRATES: &[&str] = &["kernels", "models", "bench", "reports"];

/// A module's path within its crate.
type Module = Vec<String>;

/// Everything up to the tests, without comments.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code.lines().map(|l| l.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

fn files(dir: &Path, module: &[String], out: &mut BTreeMap<Module, PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let inner = [module, std::slice::from_ref(&name)].concat();
        match name.as_str() {
            _ if path.is_dir() => files(&path, &inner, out),
            "mod" | "lib" => drop(out.insert(module.to_vec(), path)),
            "tests" | "main" => {}
            _ => drop(out.insert(inner, path)),
        }
    }
}

/// The paths of a use tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn leaves(tree: &str, before: &[String], out: &mut Vec<Module>) {
    let mut depth = 0;
    let parts = tree.split(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        c == ',' && depth == 0
    });
    for part in parts.map(str::trim).filter(|p| !p.is_empty()) {
        let (head, rest) = part.split_once("::").unwrap_or((part, ""));
        let head = head.split(" as ").next().unwrap();
        let path = match head {
            "self" if !before.is_empty() => before.to_vec(),
            _ => [before, &[head.to_owned()]].concat(),
        };
        match rest.trim().strip_prefix('{') {
            Some(inner) => leaves(inner.strip_suffix('}').unwrap(), &path, out),
            None if rest.is_empty() => out.push(path),
            None => leaves(rest, &path, out),
        }
    }
}

/// Every path of `code` that begins with `crate` or `super`, in use declarations and elsewhere, from the crate's root.
fn paths(code: &str, module: &Module, is_root: bool) -> Vec<Module> {
    let mut out = Vec::new();
    for (at, word) in ["crate::", "super::", "use "].iter().flat_map(|w| code.match_indices(w)) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c)) {
            continue;
        }
        let rest = &code[at..];
        let tree = match word {
            "use " => rest["use ".len()..].split(';').next().unwrap(),
            _ => rest.split(|c: char| !c.is_alphanumeric() && !"_:".contains(c)).next().unwrap().trim_end_matches(':'),
        };
        leaves(&tree.split_whitespace().collect::<Vec<_>>().join(" "), &[], &mut out);
    }
    let absolute = |path: Module| match path[0].as_str() {
        "crate" => Some(path[1..].to_vec()),
        "super" => {
            let ups = path.iter().take_while(|p| *p == "super").count();
            Some([&module[..module.len() - ups], &path[ups..]].concat())
        }
        _ if is_root => Some(path),
        _ => None,
    };
    out.into_iter().filter_map(absolute).collect()
}

/// What each module of a crate imports.
fn graph(src: &Path) -> BTreeMap<Module, BTreeSet<Module>> {
    let mut modules = BTreeMap::new();
    files(src, &[], &mut modules);
    // Where the root takes what it exports again from.
    let root = modules.remove(&Vec::new()).expect("a crate has a root");
    let exports = paths(&code(&root), &vec![], true);
    let exports: BTreeMap<&String, &Module> = exports.iter().filter_map(|p| Some((p.last()?, p))).collect();
    let owner = |path: &Module| {
        let path = if path.len() == 1 { exports.get(&path[0]).copied().unwrap_or(path) } else { path };
        (1..=path.len()).rev().map(|n| path[..n].to_vec()).find(|m| modules.contains_key(m))
    };
    let imports = |(module, file): (&Module, &PathBuf)| {
        let of = paths(&code(file), module, false).iter().filter_map(owner).filter(|m| m != module).collect();
        (module.clone(), of)
    };
    modules.iter().map(imports).collect()
}

/// A circle, if there is one.
fn circle(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Option<Vec<Module>> {
    let mut left = graph.clone();
    // What imports nothing that is left is in no circle.
    while let Some(free) = left.iter().find(|(_, of)| of.iter().all(|m| !left.contains_key(m))).map(|(m, _)| m.clone())
    {
        left.remove(&free);
    }
    let mut at = left.keys().next()?.clone();
    let mut path = Vec::new();
    while !path.contains(&at) {
        path.push(at.clone());
        at = left[&at].iter().find(|m| left.contains_key(*m)).unwrap().clone();
    }
    Some(path.split_off(path.iter().position(|m| *m == at).unwrap()))
}

#[test]
fn imports_have_no_circles() {
    for name in CRATES {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src");
        let files = graph(&src);
        assert!(
            files.values().map(BTreeSet::len).sum::<usize>() > files.len(),
            "{name}: hardly any imports were found"
        );
        assert_eq!(circle(&files), None, "{name}");
        let mut tops: BTreeMap<Module, BTreeSet<Module>> = BTreeMap::new();
        for (module, of) in files {
            let top = module[..1].to_vec();
            let others = of.into_iter().map(|m| m[..1].to_vec()).filter(|m| *m != top).collect::<Vec<_>>();
            tops.entry(top).or_default().extend(others);
        }
        assert_eq!(circle(&tops), None, "{name}");
    }
}

/// `kernels`, and the one file of `models` that maps weights.
#[test]
fn unsafe_code_is_where_it_is_said_to_be() {
    let mut found = Vec::new();
    for name in ["models", "bench", "reports", "tests"] {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).join("src");
        let mut modules = BTreeMap::new();
        files(&src, &[], &mut modules);
        let allows = |file: &&PathBuf| fs::read_to_string(file).unwrap().contains("allow(unsafe_code)");
        found.extend(
            modules.values().filter(allows).map(|file| file.strip_prefix(src.parent().unwrap()).unwrap().to_owned()),
        );
    }
    assert_eq!(found, [Path::new("src/weights/map.rs")]);
}

#[test]
fn a_circle_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    write("lib.rs", "mod a;\npub use a::{A, inner::B};\npub use d::e::E;");
    write("a.rs", "use crate::c;\nfn f() { crate::d::g() }");
    write("c.rs", "// use crate::a;\nuse std::a;");
    write("d/mod.rs", "mod e;");
    write("d/e.rs", "use super::g;");
    assert_eq!(circle(&graph(dir.path())), None);
    for (file, text) in [
        ("c.rs", "use crate::{A as X, d};"),
        ("d/mod.rs", "use crate::{\n    c::{self, x},\n    a::A,\n};"),
        ("d/mod.rs", "use self::e;\nfn f() -> crate::E {}"),
    ] {
        let before = fs::read_to_string(dir.path().join(file)).unwrap();
        write(file, text);
        assert!(circle(&graph(dir.path())).is_some(), "{file}: {text}");
        write(file, &before);
    }
}

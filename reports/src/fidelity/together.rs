//! Whether several files can stand on one page.

use std::{collections::HashMap, path::Path};

use super::{Fidelity, FidelityError};

/// Whether files are of one base, and on the same windows and items, so that their systems can be set beside each other as if
/// they stood in one file.
///
/// # Errors
/// The first field that is not that of the first file; a system whose name is in two files.
pub fn together(files: &[(&Path, &Fidelity)]) -> Result<(), FidelityError> {
    let Some(((first_path, first), others)) = files.split_first() else { return Ok(()) };
    let mut names: HashMap<&str, &Path> = first.systems.iter().map(|s| (s.name.as_str(), *first_path)).collect();
    for (path, file) in others {
        let refuse = |field: &str, message: String| FidelityError::Field {
            path: (*path).into(),
            field: field.into(),
            message: format!("{message}; files on one page have the same base, settings, texts and tasks"),
        };
        let unlike = |field: &str| refuse(field, format!("not as in {}", first_path.display()));
        let (a, b) = (&first.base.network, &file.base.network);
        if a.weights_sha256.is_none() || (&a.weights_sha256, &a.config_sha256) != (&b.weights_sha256, &b.config_sha256)
        {
            return Err(unlike("base.network"));
        }
        if first.settings != file.settings {
            return Err(unlike("settings"));
        }
        if first.texts != file.texts {
            return Err(unlike("texts"));
        }
        // Equal items, and equally solved: otherwise it is another base, or another machine that rounds in another way.
        if first.tasks != file.tasks {
            return Err(unlike("tasks"));
        }
        for (i, system) in file.systems.iter().enumerate() {
            if let Some(other) = names.insert(&system.name, path) {
                let message = format!("{} is in {} too", system.name, other.display());
                return Err(refuse(&format!("systems[{i}].name"), message));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fidelity::samples;

    fn refusal(change: impl Fn(&mut Fidelity)) -> Option<String> {
        let first = samples::file();
        let mut second = samples::file();
        for system in &mut second.systems {
            system.name.push_str("-other");
        }
        change(&mut second);
        together(&[(Path::new("a.json"), &first), (Path::new("b.json"), &second)]).err().map(|e| e.to_string())
    }

    #[test]
    fn files_of_the_same_questions_go_together() {
        assert_eq!(refusal(|_| ()), None);
        // What ran elsewhere, and when, is no part of the question.
        assert_eq!(refusal(|f| f.machine = Default::default()), None);
    }

    #[test]
    fn files_of_other_questions_are_refused_with_the_field() {
        let base = refusal(|f| f.base.network.weights_sha256 = Some("f".repeat(64))).unwrap();
        assert!(base.starts_with("b.json, field `base.network`: not as in a.json"), "{base}");
        for (field, refused) in [
            ("base.network", refusal(|f| f.base.network.config_sha256 = None)),
            ("settings", refusal(|f| f.settings.seed += 1)),
            ("texts", refusal(|f| f.texts[0].windows += 1)),
            ("tasks", refusal(|f| f.tasks[0].base = None)),
        ] {
            let refused = refused.unwrap();
            assert!(refused.contains(&format!("field `{field}`")), "{field}: {refused}");
        }
        let name = samples::file().systems[1].name.clone();
        let twice = refusal(|f| f.systems[0].name.clone_from(&name)).unwrap();
        assert!(twice.contains("field `systems[0].name`") && twice.contains("is in a.json too"), "{twice}");
    }
}

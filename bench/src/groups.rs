//! The control groups that this process is in.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A hierarchy of control groups, as far as this process sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// 1 or 2.
    pub version: u8,
    /// Where it is mounted.
    pub top: PathBuf,
    /// The process's own group, at or below `top`.
    pub group: PathBuf,
}

/// The hierarchies of `controller` that this process is in, under a root folder, which is `/` but for described machines.
pub fn limiting(controller: &str, root: &Path) -> Vec<Place> {
    let text = |path: &str| fs::read_to_string(root.join(path)).ok();
    let Some((groups, mounts)) = text("proc/self/cgroup").zip(text("proc/self/mountinfo")) else { return Vec::new() };
    let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let seen = |p: Place| Place { top: below(&p.top), group: below(&p.group), ..p };
    places(controller, &groups, &mounts).into_iter().map(seen).collect()
}

impl Place {
    /// The process's own group and those above it.
    pub fn groups(&self) -> impl Iterator<Item = &Path> {
        self.group.ancestors().take_while(|dir| dir.starts_with(&self.top))
    }
}

/// The hierarchies of `controller` out of `/proc/self/cgroup` and `/proc/self/mountinfo`.
fn places(controller: &str, groups: &str, mounts: &str) -> Vec<Place> {
    let group = |version: u8| {
        groups.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let this = if version == 2 {
                number == "0" && controllers.is_empty()
            } else {
                controllers.split(',').any(|c| c == controller)
            };
            this.then_some(path)
        })
    };
    let mut found: Vec<Place> = Vec::new();
    for line in mounts.lines() {
        let Some((mount, kind)) = line.split_once(" - ") else { continue };
        let (fields, mut kind) = (mount.split(' ').collect::<Vec<_>>(), kind.split(' '));
        let (Some(root), Some(at)) = (fields.get(3), fields.get(4)) else { continue };
        let version = match (kind.next(), kind.nth(1)) {
            (Some("cgroup2"), _) => 2,
            (Some("cgroup"), Some(options)) if options.split(',').any(|o| o == controller) => 1,
            _ => continue,
        };
        let Some(path) = group(version) else { continue };
        let (root, top) = (unescaped(root), PathBuf::from(unescaped(at)));
        // A mount may show a part of the hierarchy only. A process outside of it sees that part's limits.
        let below = Path::new(path).strip_prefix(&root).ok();
        let group = below.map_or_else(|| top.clone(), |below| top.join(below));
        // What is mounted later covers what was mounted there before.
        found.retain(|p| p.top != top);
        found.push(Place { version, top, group });
    }
    found
}

/// A field of `mountinfo`, in which spaces stand as `\040`.
fn unescaped(field: &str) -> String {
    let mut parts = field.split('\\');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|code| u8::from_str_radix(code, 8).ok()) {
            Some(byte) if byte.is_ascii() => {
                out.push(char::from(byte));
                out.push_str(&part[3..]);
            }
            _ => {
                out.push('\\');
                out.push_str(part);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(version: u8, top: &str, group: &str) -> Place {
        Place { version, top: top.into(), group: group.into() }
    }

    #[test]
    fn hierarchies_are_found_where_they_are_mounted() {
        // A whole hierarchy of the second version, and a group two levels down.
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            places("memory", "0::/user.slice/run\n", mounts),
            [place(2, "/sys/fs/cgroup", "/sys/fs/cgroup/user.slice/run")]
        );
        // A name space of its own: the group is the root.
        assert_eq!(places("memory", "0::/\n", mounts), [place(2, "/sys/fs/cgroup", "/sys/fs/cgroup/")]);
        // The first version, in a container that sees its own part only, under the name it has outside.
        let mounts = "41 40 0:30 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                      42 40 0:31 /docker/ab /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n";
        let groups = "5:cpu,cpuacct:/docker/ab\n4:memory:/docker/ab/inner\n0::/\n";
        let at = "/sys/fs/cgroup/memory";
        assert_eq!(places("memory", groups, mounts), [place(1, at, "/sys/fs/cgroup/memory/inner")]);
        let at_cpu = "/sys/fs/cgroup/cpu";
        assert_eq!(places("cpu", groups, mounts), [place(1, at_cpu, at_cpu)]);
        // Outside of the part that is seen.
        assert_eq!(places("memory", "4:memory:/other\n", mounts), [place(1, at, at)]);
        assert_eq!(places("memory", "0::/../..\n", "30 23 0:26 /x /c rw - cgroup2 c rw\n"), [place(2, "/c", "/c")]);
        // The last mount covers the ones before; both versions at once; a space in a name.
        let mounts = "30 23 0:26 / /c\\040g rw - cgroup cgroup rw,memory\n31 23 0:26 /a /c\\040g rw - cgroup cgroup rw,memory\n\
                      32 23 0:27 / /u rw shared:1 - cgroup2 cgroup rw\n";
        assert_eq!(
            places("memory", "4:memory:/a/b\n0::/d\n", mounts),
            [place(1, "/c g", "/c g/b"), place(2, "/u", "/u/d")]
        );
        assert_eq!(places("memory", "", mounts), []);
        assert_eq!(places("memory", "0::/", "not a mount\n1 2 3\n - cgroup2\n"), []);
    }
}

//! Text as it comes from elsewhere: what other programs put before it, and what must not reach a terminal or a page.

/// `text` without a UTF-8 byte order mark, which editors and shells on Windows put first.
pub fn without_mark(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// What a file is that holds no UTF-8 text of its own, with what to do about it: UTF-16, or a Git LFS pointer.
pub fn stand_in(text: &[u8]) -> Option<&'static str> {
    if text.starts_with(b"\xff\xfe") || text.starts_with(b"\xfe\xff") {
        return Some("the text is UTF-16, as its byte order mark says: save it as UTF-8");
    }
    let pointer = text.starts_with(b"version https://git-lfs.github.com/spec/");
    pointer.then_some("a Git LFS pointer stands here instead of the file: fetch it with `git lfs pull`")
}

/// Whether a character steers a terminal or the direction of text instead of being shown.
pub fn steers(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// A name from outside (of a file, of a field) on one line, with nothing in it that steers a terminal.
pub fn printable(name: &str) -> String {
    name.chars().map(|c| if steers(c) { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Text that a spreadsheet takes for text: one that begins as a formula does gets an apostrophe, and no character steers.
pub fn no_formula(words: &str) -> String {
    let words = printable(words);
    let formula = words.trim_start().starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']);
    if formula { format!("'{words}") } else { words }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_stand_ins() {
        assert_eq!(without_mark(b"\xef\xbb\xbf{}"), b"{}");
        assert_eq!(without_mark(b"{}"), b"{}");
        assert_eq!(without_mark(b"\xef\xbb"), b"\xef\xbb");
        assert!(stand_in(b"\xff\xfe{\0").unwrap().contains("UTF-16"));
        assert!(stand_in(b"\xfe\xff\0{").unwrap().contains("UTF-16"));
        assert!(stand_in(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n").unwrap().contains("LFS"));
        assert_eq!(stand_in(b"{\"version\": 1}"), None);
        assert_eq!(stand_in(b""), None);
    }

    #[test]
    fn names_steer_nothing() {
        assert_eq!(printable("a\x1b[31m\nb\u{9b}c\u{202e}d"), "a\u{fffd}[31m\u{fffd}b\u{fffd}c\u{fffd}d");
        assert_eq!(printable("ä ö 日本 |<>&"), "ä ö 日本 |<>&");
    }

    #[test]
    fn text_is_no_formula() {
        for (words, cell) in [
            ("=1+1", "'=1+1"),
            ("+a", "'+a"),
            ("-a", "'-a"),
            ("@x", "'@x"),
            (" =x", "' =x"),
            ("\t=x", "\u{fffd}=x"),
            ("a=b", "a=b"),
            ("x\ny", "x\u{fffd}y"),
            ("", ""),
        ] {
            assert_eq!(no_formula(words), cell);
        }
    }
}

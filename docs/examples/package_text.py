#!/usr/bin/env python3
"""Makes one plain text of the HTML pages in a Debian package, for fitting maps and for judging them.

    apt-get download postgresql-doc-15
    python3 docs/examples/package_text.py postgresql-doc-15_*.deb fit.txt --held-out held.txt

With --held-out, every tenth page goes to that file instead. It needs dpkg-deb.
"""
import argparse, html.parser, pathlib, re, subprocess, tempfile

BLOCKS = set("br dd div dt h1 h2 h3 h4 h5 h6 li p pre table title tr".split())
HIDDEN = {"head", "script", "style"}
# Shorter pages are little but links.
LEAST = 2000


class Page(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.out, self.hidden, self.pre = [], 0, 0

    def handle_starttag(self, tag, attributes):
        self.hidden += tag in HIDDEN
        self.pre += tag == "pre"
        if tag in BLOCKS:
            self.out.append("\n")

    def handle_endtag(self, tag):
        self.hidden -= tag in HIDDEN and self.hidden > 0
        self.pre -= tag == "pre" and self.pre > 0
        if tag in BLOCKS:
            self.out.append("\n")

    def handle_data(self, data):
        if not self.hidden:
            self.out.append(data if self.pre else re.sub(r"\s+", " ", data))


def text(path):
    page = Page()
    page.feed(path.read_text("utf-8", "replace"))
    page.close()
    lines = "".join(page.out)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", lines)).strip() + "\n"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("package", type=pathlib.Path, help="a .deb file")
    p.add_argument("out", type=pathlib.Path, help="the text to write")
    p.add_argument("--held-out", type=pathlib.Path, metavar="FILE", help="text of every tenth page")
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", a.package, folder], check=True)
        # A page that two names lead to counts once.
        paths = [path for path in sorted(pathlib.Path(folder).rglob("*.html")) if not path.is_symlink()]
        pages = [page for page in map(text, paths) if len(page) >= LEAST]
    if not pages:
        raise SystemExit(f"{a.package}: no HTML page of {LEAST} characters or more")
    held = pages[9::10] if a.held_out else []
    kept = [page for i, page in enumerate(pages) if not a.held_out or i % 10 != 9]
    for file, part in [(a.out, kept)] + ([(a.held_out, held)] if a.held_out else []):
        file.write_text("\n".join(part), encoding="utf-8")
        print(f"{file}: {len(part)} pages, {sum(map(len, part))} characters")


if __name__ == "__main__":
    main()

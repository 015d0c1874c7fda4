# Sourced by the scripts that write a page of docs/, with PAGE set, and FIGURES for figures: what a page is made of.

# A command, shown on the page as it is written here, then run.
show() { printf '```\n%s\n```\n\n' "$1" >> "$PAGE"; }
run() { show "$1"; eval "$1" >&2; }
text() { printf '%s\n\n' "$1" >> "$PAGE"; }
tables() { sed 's/^###/####/' "$1" >> "$PAGE"; echo >> "$PAGE"; }
# A figure on the page, made small: a palette of 256 colours is a third of the size.
figure() {
    python -c 'import sys; from PIL import Image
image = Image.open(sys.argv[1]); image.load()
if image.mode != "P": image.convert("RGB").quantize(256).save(sys.argv[1], optimize=True)' "$FIGURES/$1"
    text "![$2]($(basename "$FIGURES")/$1)"
}
# Of how many images of which kind the page speaks.
images_of() { echo "$(find "$1"/*/1_fake -type f | wc -l) generated images of $(ls -d "$1"/*/1_fake | wc -l) generators and $(find "$1"/*/0_real -type f | wc -l) photographs of other sources"; }

PATH="$PWD/.venv/bin:$PATH"
: > "$PAGE"

# Functions that write a page of docs/. The calling script sets PAGE, the file to write, and FIGURES, the folder of
# figures.

# show writes a command on the page; run also runs it.
show() { printf '```\n%s\n```\n\n' "$1" >> "$PAGE"; }
run() { show "$1"; eval "$1" >&2; }
text() { printf '%s\n\n' "$1" >> "$PAGE"; }
tables() { sed 's/^###/####/' "$1" >> "$PAGE"; echo >> "$PAGE"; }
# Reduces a figure to a palette of 256 colours, which makes the file a third of the size, and shows it on the page.
figure() {
    python -c 'import sys; from PIL import Image
image = Image.open(sys.argv[1]); image.load()
if image.mode != "P": image.convert("RGB").quantize(256).save(sys.argv[1], optimize=True)' "$FIGURES/$1"
    text "![$2]($(basename "$FIGURES")/$1)"
}
# Counts the images of a labelled folder, in words.
images_of() { echo "$(find -L "$1"/*/1_fake -type f | wc -l) generated images of $(ls -d "$1"/*/1_fake | wc -l) generators and $(find -L "$1"/*/0_real -type f | wc -l) real images"; }

PATH="$PWD/.venv/bin:$PATH"
: > "$PAGE"

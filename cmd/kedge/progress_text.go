package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// plain writes one line a step, for logs and pipes.
type plain struct{ w io.Writer }

func (p *plain) begin(s snapshot) { fmt.Fprintln(p.w, beginText(s)) }
func (p *plain) tick(snapshot)    {}
func (p *plain) done(s snapshot)  { fmt.Fprint(p.w, doneText(s)) }
func (p *plain) close(bool)       {}

func (p *plain) step(_, description string) { fmt.Fprintln(p.w, description) }

func beginText(s snapshot) string {
	t := s.totals()
	text := fmt.Sprintf("Fetching %s, %s", count(t.layersTotal, "layer"), size(t.total))
	if t.layersTotal == 0 {
		text = "Nothing to fetch"
	}
	if t.layersReady > 0 {
		text += fmt.Sprintf(" (%s, %s already here)", count(t.layersReady, "layer"), size(t.cached))
	}
	return text
}

func doneText(s snapshot) string {
	t := s.totals()
	if t.layersTotal == 0 {
		return ""
	}
	rate := float64(t.total) / max(s.elapsed.Seconds(), 0.001)
	return fmt.Sprintf("Fetched %s in %s (%s/s)\n", size(t.total), seconds(s.elapsed), size(int64(rate)))
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func seconds(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%d min %02d s", int(d.Minutes()), int(d.Seconds())%60)
}

// terminal redraws a line for each running layer and one for the total.
type terminal struct {
	w     io.Writer
	width int
	drawn int // lines on the screen that the next drawing replaces
}

// maxRunning is how many running layers get a line of their own.
const maxRunning = 8

func (t *terminal) begin(s snapshot) { t.tick(s) }

func (t *terminal) tick(s snapshot) {
	lines := runningLines(s)
	total := s.totals()
	line := fmt.Sprintf("Fetching %d/%d layers  %s/%s", total.layers, total.layersTotal, size(total.bytes), size(total.total))
	if s.rate > 0 {
		line += fmt.Sprintf("  %s/s  %s left", size(int64(s.rate)), seconds(s.left()))
	}
	t.draw(append(lines, line))
}

func runningLines(s snapshot) []string {
	var lines []string
	for _, l := range s.layers {
		if l.Cached || l.done || l.bytes == 0 || len(lines) == maxRunning {
			continue
		}
		digest := strings.TrimPrefix(l.Digest, "sha256:")
		name := l.Name
		if name == "" {
			name = "layer"
		}
		lines = append(lines, fmt.Sprintf("  %s  %s/%s  %s", digest[:min(12, len(digest))], size(l.bytes), size(l.Size), oneLine(name)))
	}
	return lines
}

func (t *terminal) draw(lines []string) {
	var b strings.Builder
	if t.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", t.drawn)
	}
	b.WriteString("\r\x1b[J")
	for _, l := range lines {
		if r := []rune(l); len(r) >= t.width {
			l = string(r[:t.width-1])
		}
		b.WriteString(l + "\n")
	}
	t.drawn = len(lines)
	_, _ = io.WriteString(t.w, b.String()) // a terminal that went away stops nothing
}

func (t *terminal) done(s snapshot) {
	t.draw(nil)
	if text := doneText(s); text != "" {
		fmt.Fprint(t.w, text)
		return
	}
	fmt.Fprintln(t.w, beginText(s))
}

func (t *terminal) step(_, description string) {
	t.draw(nil)
	fmt.Fprintln(t.w, description)
}

func (t *terminal) close(bool) { t.draw(nil) }

func terminalWidth(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 20 {
			return width
		}
	}
	return 80
}

package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"strings"
	"time"
)

// reference is the program that the ratio is against.
const reference = "podman pull"

// importPart names the rows of what a program does up to the image's commit.
const importPart = ": the import in it"

// row is one line of the table.
type row struct {
	name    string
	program string
	usage
	rss int64
}

func ofKedge(program string) bool { return strings.HasPrefix(program, "kedge") }

// heading begins the table.
func (b *bench) heading() string {
	host := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if v, ok := strings.CutPrefix(line, "model name"); ok {
				host = strings.Trim(v, "\t :\n")
				break
			}
		}
	}
	return fmt.Sprintf("%d × %s; best of %d runs, of one for 3 GB, 150,000 files and upgrades.\n\n", runtime.NumCPU(), host, b.runs) +
		"| what | program | seconds | CPU seconds | peak RSS, MB | time against podman pull | CPU against podman pull |\n" +
		"|---|---|---:|---:|---:|---:|---:|\n"
}

// record keeps a row and prints it.
func (b *bench) record(r row) {
	b.rows = append(b.rows, r)
	fmt.Print(b.line(r))
}

func (b *bench) line(r row) string {
	wall, cpu, rss := "", "", ""
	if o := b.find(r.name, reference); o != nil && r.program != reference {
		wall = fmt.Sprintf("%.2f", r.Wall.Seconds()/o.Wall.Seconds())
		cpu = fmt.Sprintf("%.2f", r.CPU.Seconds()/o.CPU.Seconds())
	}
	if r.rss > 0 {
		rss = fmt.Sprint(r.rss >> 20)
	}
	return fmt.Sprintf("| %s | %s | %.2f | %.2f | %s | %s | %s |\n", r.name, r.program, r.Wall.Seconds(), r.CPU.Seconds(), rss, wall, cpu)
}

func (b *bench) find(name, program string) *row {
	for i := range b.rows {
		if r := &b.rows[i]; r.name == name && r.program == program {
			return r
		}
	}
	return nil
}

// aims is what kedge is meant to reach, and what this run has of it: the worst
// of the rows that an aim is about.
func (b *bench) aims() string {
	var out strings.Builder
	out.WriteString("| aim | at most | measured, the worst | |\n|---|---:|---:|---|\n")
	add := func(what, unit string, limit float64, of func(r row) (float64, bool)) {
		worst := math.Inf(-1)
		for _, r := range b.rows {
			if v, ok := of(r); ok {
				worst = max(worst, v)
			}
		}
		if math.IsInf(worst, -1) {
			return // not measured
		}
		verdict := "met"
		if worst > limit {
			verdict = "**missed**"
		}
		fmt.Fprintf(&out, "| %s | %.4g%s | %.3g%s | %s |\n", what, limit, unit, worst, unit, verdict)
	}
	whole := func(r row, name string) bool {
		return strings.HasPrefix(r.name, name) && ofKedge(r.program) && !strings.HasSuffix(r.program, importPart)
	}
	seconds := func(name string) func(row) (float64, bool) {
		return func(r row) (float64, bool) { return r.Wall.Seconds(), whole(r, name) }
	}
	// At 150,000 files a deployment on ostree is a link for each file, too.
	add("cold installation of 650 MB and 3 GB, of `podman pull`'s time", " ×", 0.6, func(r row) (float64, bool) {
		o := b.find(r.name, reference)
		if o == nil || !whole(r, "cold") || strings.Contains(r.name, "150,000") {
			return 0, false
		}
		return r.Wall.Seconds() / o.Wall.Seconds(), true
	})
	add("import into composefs, of the time into ostree", " ×", 1, func(r row) (float64, bool) {
		o := b.find(r.name, "kedge install"+importPart)
		if o == nil || r.program != "kedge install, composefs"+importPart {
			return 0, false
		}
		return r.Wall.Seconds() / o.Wall.Seconds(), true
	})
	add("upgrade without a change", " s", 0.5, seconds("upgrade, no change"))
	add("upgrade by one file", " s", 2, seconds("upgrade, one file"))
	// On ostree a deployment is a link for each file.
	add("switch at 150,000 files, every layer present, composefs", " s", 1.5, func(r row) (float64, bool) {
		return r.Wall.Seconds(), r.name == switchMany && r.program == "kedge switch, composefs"
	})
	add("pkg add of a small package, beyond the package manager's own time", " s", 1.5, func(r row) (float64, bool) {
		for _, m := range managers {
			if o := b.find(r.name, m.program); o != nil && whole(r, "packages") {
				return r.Wall.Seconds() - o.Wall.Seconds(), true
			}
		}
		return 0, false
	})
	add("upgrade with packages that were chosen before, beyond that without", " s", 1, func(r row) (float64, bool) {
		o := b.find(r.name, r.program+withoutThem)
		if o == nil {
			return 0, false
		}
		return r.Wall.Seconds() - o.Wall.Seconds(), true
	})
	add("boot with kedge's units, beyond one without", " s", 0.3, func(r row) (float64, bool) {
		o := b.find(r.name, withoutUnits+strings.TrimPrefix(r.program, withUnits))
		if o == nil || !whole(r, bootedBoot) {
			return 0, false
		}
		return r.Wall.Seconds() - o.Wall.Seconds(), true
	})
	add("staging, beyond the import", " s", 1.5, func(r row) (float64, bool) {
		o := b.find(r.name, r.program+importPart)
		if o == nil || !whole(r, bootedStage) {
			return 0, false
		}
		return r.Wall.Seconds() - o.Wall.Seconds(), true
	})
	add("finalisation at shutdown", " s", 0.5, seconds(bootedFinal))
	add("rollback", " s", 0.3, seconds(bootedReturn))
	rss := func(name string) func(row) (float64, bool) {
		return func(r row) (float64, bool) { return float64(r.rss >> 20), whole(r, name) }
	}
	add("peak RSS at 650 MB", " MB", 200, func(r row) (float64, bool) {
		return float64(r.rss >> 20), whole(r, "cold") && !strings.Contains(r.name, "3 GB") && !strings.Contains(r.name, "150,000")
	})
	add("peak RSS at 3 GB", " MB", 200, rss("cold, 3 GB"))
	add("peak RSS of kedge itself, packages", " MB", 200, rss("packages"))
	return out.String()
}

// The marks between which a page has the figures.
const (
	pageBegin = "<!-- make bench: begin -->\n"
	pageEnd   = "<!-- make bench: end -->\n"
)

// updatePage puts the figures into the page.
func (b *bench) updatePage() error {
	old, err := os.ReadFile(b.update)
	if err != nil {
		return err
	}
	before, rest, ok := strings.Cut(string(old), pageBegin)
	_, after, ok2 := strings.Cut(rest, pageEnd)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks for figures", b.update)
	}
	var page strings.Builder
	page.WriteString(before + pageBegin + b.heading())
	for _, r := range b.rows {
		page.WriteString(b.line(r))
	}
	fmt.Fprintf(&page, "\n%s\nThe whole took %d minutes.\n%s%s", b.aims(), int(math.Ceil(time.Since(b.started).Minutes())), pageEnd, after)
	return os.WriteFile(b.update, []byte(page.String()), 0o644)
}

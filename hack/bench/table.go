package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// reference is the program that the ratio is against.
const reference = "podman pull"

// row is one line of the table.
type row struct {
	name    string
	program string
	usage
	rss int64
}

// heading begins the table, as docs/performance.md has it.
func (b *bench) heading() {
	host := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if v, ok := strings.CutPrefix(line, "model name"); ok {
				host = strings.Trim(v, "\t :\n")
				break
			}
		}
	}
	fmt.Printf("%d × %s; programs in turn, best of %d runs (3 GB and upgrades: one run), largest RSS of all.\n\n", runtime.NumCPU(), host, b.runs)
	fmt.Println("| what | program | seconds | CPU seconds | peak RSS, MB | time against podman pull | CPU against podman pull |")
	fmt.Println("|---|---|---:|---:|---:|---:|---:|")
}

// record prints a row.
func (b *bench) record(r row) {
	b.rows = append(b.rows, r)
	wall, cpu, rss := "", "", ""
	for _, o := range b.rows {
		if o.name == r.name && o.program == reference && r.program != reference {
			wall = fmt.Sprintf("%.2f", r.Wall.Seconds()/o.Wall.Seconds())
			cpu = fmt.Sprintf("%.2f", r.CPU.Seconds()/o.CPU.Seconds())
		}
	}
	if r.rss > 0 {
		rss = fmt.Sprint(r.rss >> 20)
	}
	fmt.Printf("| %s | %s | %.2f | %.2f | %s | %s | %s |\n", r.name, r.program, r.Wall.Seconds(), r.CPU.Seconds(), rss, wall, cpu)
}

package main

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// reference is the program that the ratio is against.
const reference = "podman pull"

// print writes the table, as docs/performance.md has it.
func (b *bench) print() {
	host := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if v, ok := strings.CutPrefix(line, "model name"); ok {
				host = strings.Trim(v, "\t :\n")
				break
			}
		}
	}
	fmt.Printf("%d × %s; programs in turn, best of %d runs, largest RSS of all.\n\n", runtime.NumCPU(), host, b.runs)
	fmt.Println("| what | program | seconds | CPU seconds | peak RSS, MB | time against podman pull |")
	fmt.Println("|---|---|---:|---:|---:|---:|")
	for _, r := range b.rows {
		ratio := ""
		for _, o := range b.rows {
			if o.name == r.name && o.program == reference && r.program != reference {
				ratio = fmt.Sprintf("%.2f", r.Wall.Seconds()/o.Wall.Seconds())
			}
		}
		fmt.Printf("| %s | %s | %.2f | %.2f | %d | %s |\n", r.name, r.program, r.Wall.Seconds(), r.CPU.Seconds(), r.RSS>>20, ratio)
	}
}

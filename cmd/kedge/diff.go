package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
	"github.com/kedge-os/kedge/pkg/pkgdb"
)

func cmdDiff(e *env) *cli.Command {
	var files, packages bool
	return &cli.Command{
		Name:      "diff",
		Usage:     "show what differs between two deployments or images",
		ArgsUsage: "[A] [B]",
		Description: "A and B are an index of status, a digest, a version, or an image that this host has.\n" +
			"Without B, A is compared with what the next boot takes; without both, the booted (or\n" +
			"previous) deployment is compared with it. Compares the images' files: changes made to\n" +
			"/etc on this host and /var are not part of it.\n\n" +
			"Each line is a letter and a path: A added, R removed, C content, M owner, mode or xattrs,\n" +
			"T type.\n\n" +
			"With --packages, compares what the images' own package databases (rpm's or dpkg's) say is\n" +
			"installed; nothing else of them is read.",
		UsageText: "kedge diff --packages 1 0",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "files", Usage: "compare files (what diff does without a flag too)", Destination: &files},
			&cli.BoolFlag{Name: "packages", Usage: "compare the packages", Destination: &packages},
		},
		Action: func(c *cli.Context) error {
			if c.NArg() > 2 {
				return fault.New(fault.Usage, "kedge diff --help shows what it takes", "diff: unexpected operand %q", c.Args().Get(2))
			}
			if files && packages {
				return fault.New(fault.Usage, "leave one of them out", "diff: --files with --packages")
			}
			run := runDiff
			if packages {
				run = runDiffPackages
			}
			return run(c.Context, e, c.Args().Get(0), c.Args().Get(1))
		},
	}
}

func runDiff(ctx context.Context, e *env, a, b string) error {
	diff := func(h *host.Host, ctx context.Context) ([]v1.FileChange, error) { return h.Diff(ctx, a, b) }
	return show(ctx, e, false, diff, diffText)
}

func diffText(changes []v1.FileChange) string {
	letters := map[string]string{"added": "A", "removed": "R", "content": "C", "metadata": "M", "type": "T"}
	var out strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&out, "%s %s\n", letters[c.Change], oneLine(c.Path))
	}
	return out.String()
}

func runDiffPackages(ctx context.Context, e *env, a, b string) error {
	diff := func(h *host.Host, ctx context.Context) ([]v1.PackageDiff, error) { return h.DiffPackages(ctx, a, b) }
	return show(ctx, e, false, diff, func(changes []v1.PackageDiff) string { return packageLines(changes, "") })
}

// packageLines are one line for each change, by what it is.
func packageLines(changes []v1.PackageDiff, indent string) string {
	var out strings.Builder
	for _, word := range []string{pkgdb.Upgraded, pkgdb.Downgraded, pkgdb.Added, pkgdb.Removed} {
		for _, c := range changes {
			if c.Change != word {
				continue
			}
			versions := c.From + c.To
			if c.From != "" && c.To != "" {
				versions = c.From + " -> " + c.To
			}
			fmt.Fprintf(&out, "%s%-10s %s %s\n", indent, word, oneLine(c.Name), oneLine(versions))
		}
	}
	return out.String()
}

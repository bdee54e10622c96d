package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/host"
)

func cmdEtc(e *env) *cli.Command {
	var reset host.EtcResetOptions
	return &cli.Command{
		Name:  "etc",
		Usage: "compare /etc with the image's defaults",
		Description: "What this host changed in /etc is carried from root to root: into the new image's\n" +
			"defaults the local changes are merged, when a deployment is staged and once more at\n" +
			"shutdown.",
		UsageText: "kedge etc diff",
		Subcommands: []*cli.Command{
			{
				Name: "diff", Usage: "list local changes",
				Description: "Each line is a letter and a path: A added, M modified, R removed, P only owner, mode or\n" +
					"extended attributes, I not carried over (a socket, fifo or device). Of files like\n" +
					"/etc/passwd the entries follow.",
				UsageText: "kedge etc diff --json",
				Action:    withoutOperands(func(c *cli.Context) error { return show(c.Context, e, false, (*host.Host).EtcDiff, etcDiffText) }),
			},
			{
				Name: "conflicts", Usage: "list what both this host and an image changed", ArgsUsage: "[DEPLOYMENT|staged]",
				Description: "DEPLOYMENT is an index of status, an ID, a digest or a version. For what runs it is what the\n" +
					"merge came to that made it. Without an operand: the staged deployment, or else what runs.\n" +
					"Each line says what the new root has: kept (this host's version), merged (something of\n" +
					"both), taken (the image's, by a rule), or refused; \"!\" marks what to look at.",
				UsageText: "kedge etc conflicts staged",
				Action: func(c *cli.Context) error {
					if c.NArg() > 1 {
						return fault.New(fault.Usage, "kedge etc conflicts --help shows what it takes", "etc conflicts: unexpected operand %q", c.Args().Get(1))
					}
					return runEtcConflicts(c.Context, e, c.Args().First())
				},
			},
			{
				Name: "reset", Usage: "make paths in /etc what the image has", ArgsUsage: "PATH...",
				Description: "Writes the /etc that runs, or of a sysroot that is not booted the default one, in place.\n" +
					"Of a directory everything in it is reset. What the image does not have stays, unless\n" +
					"--remove is given. The history names what was reset.",
				UsageText: "kedge etc reset /etc/ssh/sshd_config",
				Flags: []cli.Flag{
					&cli.BoolFlag{Name: "remove", Usage: "take away what the image does not have", Destination: &reset.Remove},
				},
				Action: func(c *cli.Context) error {
					if reset.Paths = c.Args().Slice(); len(reset.Paths) == 0 {
						return fault.New(fault.Usage, "kedge etc diff lists what differs", "etc reset: PATH is missing")
					}
					return runEtcReset(c.Context, e, reset)
				},
			},
		},
	}
}

func etcDiffText(changes []v1.EtcChange) string {
	letters := map[string]string{"added": "A", "modified": "M", "removed": "R", "attributes": "P", "ignored": "I"}
	signs := map[string]string{"added": "+", "modified": "~", "removed": "-"}
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s %s", letters[c.Change], oneLine(c.Path))
		for _, l := range c.Lines {
			fmt.Fprintf(&b, " %s%s", signs[l.Change], oneLine(l.Key))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func runEtcConflicts(ctx context.Context, e *env, target string) error {
	conflicts := func(h *host.Host, ctx context.Context) ([]v1.EtcChange, error) { return h.EtcConflicts(ctx, target) }
	return show(ctx, e, false, conflicts, func(changes []v1.EtcChange) string { return etcConflictsText("", changes) })
}

// etcConflictsText is a line for each change, and one for each note.
func etcConflictsText(indent string, changes []v1.EtcChange) string {
	var b strings.Builder
	for _, c := range changes {
		mark := " "
		if c.Conflict {
			mark = "!"
		}
		fmt.Fprintf(&b, "%s%s %-7s %s (here: %s, image: %s)\n", indent, mark, c.Result, oneLine(c.Path), c.Change, c.Image)
		for _, n := range c.Notes {
			fmt.Fprintf(&b, "%s            %s\n", indent, oneLine(n))
		}
	}
	return b.String()
}

func runEtcReset(ctx context.Context, e *env, o host.EtcResetOptions) error {
	reset := func(h *host.Host, ctx context.Context) (*v1.EtcReset, error) { return h.EtcReset(ctx, o) }
	return show(ctx, e, true, reset, func(r *v1.EtcReset) string {
		if len(r.Reset) == 0 {
			return "No change: that is as in the image.\n"
		}
		var b strings.Builder
		for _, p := range r.Reset {
			fmt.Fprintf(&b, "reset %s\n", oneLine(p))
		}
		return b.String()
	})
}

// etcSummary counts what becomes of local changes.
func etcSummary(changes []v1.EtcChange) string {
	merged, conflicts := 0, 0
	for _, c := range changes {
		switch {
		case c.Conflict:
			conflicts++
		case c.Result == "merged":
			merged++
		}
	}
	return fmt.Sprintf("%s, %d merged with the image's, %s", count(len(changes), "local change"), merged, count(conflicts, "conflict"))
}

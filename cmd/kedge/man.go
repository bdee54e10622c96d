package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/urfave/cli/v2"
)

// cmdMan writes the manual pages; the Makefile runs it for a release.
func cmdMan(e *env) *cli.Command {
	return &cli.Command{
		Name:      "man",
		Hidden:    true,
		Usage:     "write a manual page per verb to a directory",
		ArgsUsage: "DIR",
		Action: func(c *cli.Context) error {
			dir, err := oneOperand(c, "DIR")
			if err != nil {
				return err
			}
			return runMan(c.App, dir)
		},
	}
}

func runMan(app *cli.App, dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("write manual pages: %w", err)
	}
	defer root.Close()
	for name, page := range manPages(app) {
		if err := root.WriteFile(name, []byte(page), 0o644); err != nil {
			return fmt.Errorf("write manual pages: %w", err)
		}
	}
	return nil
}

// manPages returns each page by its file name, "kedge-switch.8".
func manPages(app *cli.App) map[string]string {
	pages := map[string]string{"kedge.8": manPage(app, nil)}
	forEach(app.Commands, nil, func(above []*cli.Command, c *cli.Command) {
		if c.Hidden {
			return
		}
		path := append(above[:len(above):len(above)], c)
		pages["kedge-"+strings.ReplaceAll(names(path), " ", "-")+".8"] = manPage(app, path)
	})
	return pages
}

func manPage(app *cli.App, path []*cli.Command) string {
	title, usage, text, example := "kedge", app.Usage, app.Description, "kedge switch registry.example/os:stable"
	line, flags, commands := "kedge [FLAGS] VERB [FLAGS] [OPERANDS]", app.Flags, app.Commands
	if len(path) > 0 {
		c := path[len(path)-1]
		title = "kedge-" + strings.ReplaceAll(names(path), " ", "-")
		usage, text, example, line, flags, commands = c.Usage, c.Description, c.UsageText, synopsis(path), c.Flags, c.Subcommands
	}
	var b strings.Builder
	section := func(name string) { fmt.Fprintf(&b, ".SH %s\n", name) }
	fmt.Fprintf(&b, ".TH %s 8\n", strings.ToUpper(roff(title)))
	section("NAME")
	fmt.Fprintf(&b, "%s \\- %s\n", roff(title), roff(usage))
	section("SYNOPSIS")
	fmt.Fprintf(&b, "%s\n", roff(line))
	section("DESCRIPTION")
	b.WriteString(roffParagraphs(text))
	if len(visible(commands)) > 0 {
		section("VERBS")
		for _, c := range commands {
			if !c.Hidden {
				fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(c.Name), roff(c.Usage))
			}
		}
	}
	if len(flags) > 0 {
		section("OPTIONS")
		for _, f := range flags {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(flagSynopsis(f)), roff(strings.ReplaceAll(f.(cli.DocGenerationFlag).GetUsage(), "`", "")))
		}
	}
	if example != "" {
		section("EXAMPLE")
		fmt.Fprintf(&b, ".nf\n%s\n.fi\n", roff(example))
	}
	section("EXIT STATUS")
	b.WriteString("0 on success; 2 usage, 3 not found, 4 conflict, 5 unavailable, 6 no space, 7 untrusted,\n" +
		"8 corrupt, 9 busy, 10 denied, 11 I/O error, 12 held, 13 scriptlet failed,\n" +
		"77 unchanged, 130 interrupted, 1 a bug.\n")
	section("SEE ALSO")
	b.WriteString(seeAlso(title))
	return b.String()
}

func seeAlso(title string) string {
	if title == "kedge" {
		return ".BR bootc (8),\n.BR ostree (1)\n"
	}
	return ".BR kedge (8)\n"
}

// roff escapes a line: backslashes, hyphens that are minus signs, and a control
// character at its start.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

func roffParagraphs(s string) string {
	var b strings.Builder
	for line := range strings.SplitSeq(s, "\n") {
		if line == "" {
			b.WriteString(".PP\n")
			continue
		}
		b.WriteString(roff(line) + "\n")
	}
	return b.String()
}

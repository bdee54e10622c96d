package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime/debug"
	"strings"
	"syscall"
	"text/tabwriter"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"

	v1 "github.com/kedge-os/kedge/api/v1"
	"github.com/kedge-os/kedge/pkg/fault"
	"github.com/kedge-os/kedge/pkg/ocibridge"
)

// env is what a verb has of the world: the global flags and where to print.
type env struct {
	stdout, stderr io.Writer

	sysroot    string
	logLevel   string
	logFormat  string
	color      string
	json       bool
	quiet      bool
	progressFD int
	tool       string
	version    bool

	log *slog.Logger
}

// version is set by the linker in builds that make makes.
var version string

// buildVersion names the build: what make said, else the commit.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "devel"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			return "devel-" + s.Value[:min(12, len(s.Value))]
		}
	}
	return "devel"
}

func (e *env) flags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "sysroot", Value: "/", Usage: "work on the sysroot at `DIR`; written directly unless it is the booted one", Destination: &e.sysroot},
		&cli.BoolFlag{Name: "json", Usage: "print JSON, errors too", Destination: &e.json},
		&cli.BoolFlag{Name: "quiet", Usage: "show no progress", Destination: &e.quiet},
		&cli.IntFlag{Name: "progress-fd", Usage: "write progress as JSON lines to file descriptor `N`", DefaultText: "none", Value: -1, Destination: &e.progressFD},
		&cli.StringFlag{Name: "composefs-tool", Usage: "write composefs images with `PROGRAM`, such as mkcomposefs, in sha256 stores", Destination: &e.tool},
		&cli.StringFlag{Name: "log-level", Value: "warn", Usage: "log from `LEVEL` on: debug, info, warn or error", Destination: &e.logLevel},
		&cli.StringFlag{Name: "log-format", Value: "text", Usage: "log as `FORMAT`: text or json", Destination: &e.logFormat},
		&cli.StringFlag{Name: "color", Value: "auto", Usage: "use colours `WHEN`: auto, never or always", Destination: &e.color},
		&cli.BoolFlag{Name: "version", Usage: "print the version", Destination: &e.version},
	}
}

// before checks the global flags and sets up logging.
func (e *env) before(*cli.Context) error {
	var level slog.Level
	if err := level.UnmarshalText([]byte(e.logLevel)); err != nil {
		return fault.New(fault.Usage, "use debug, info, warn or error", "--log-level %s: unknown level", e.logLevel)
	}
	options := &slog.HandlerOptions{Level: level}
	switch e.logFormat {
	case "text":
		e.log = slog.New(slog.NewTextHandler(e.stderr, options))
	case "json":
		e.log = slog.New(slog.NewJSONHandler(e.stderr, options))
	default:
		return fault.New(fault.Usage, "use text or json", "--log-format %s: unknown format", e.logFormat)
	}
	ocibridge.RouteLogs(e.log)
	if e.color != "auto" && e.color != "never" && e.color != "always" {
		return fault.New(fault.Usage, "use auto, never or always", "--color %s: unknown value", e.color)
	}
	if e.sysroot == "" {
		return fault.New(fault.Usage, "", "--sysroot: empty path")
	}
	return nil
}

func (e *env) printf(format string, args ...any) error {
	return e.write([]byte(fmt.Sprintf(format, args...)))
}

// write prints to standard output. A reader that went away is no error: what
// was asked for was done. Nor does any other error mean what it would mean of the
// sysroot: a full disk below the output is not one below the roots.
func (e *env) write(b []byte) error {
	if _, err := e.stdout.Write(b); err != nil && !errors.Is(err, syscall.EPIPE) {
		return fault.New(fault.IO, "what was asked for was done: kedge status shows what is there", "print the result: %v", err)
	}
	return nil
}

// print prints v as JSON where that was asked for, else its text.
func (e *env) print(v any, text func() string) error {
	if e.json {
		return e.printJSON(v)
	}
	return e.write([]byte(text()))
}

// printJSON prints v as indented JSON without HTML escapes.
func (e *env) printJSON(v any) error {
	b, err := marshal(v)
	if err != nil {
		return err
	}
	return e.write(b)
}

func (e *env) printYAML(v any) error {
	b, err := yaml.Marshal(v)
	if err != nil {
		return err
	}
	return e.write(b)
}

func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// report prints what went wrong, if anything, and returns the exit status.
func (e *env) report(err error) int {
	if err == nil {
		return 0
	}
	kind := fault.KindOf(err)
	if kind == fault.Unchanged {
		return kind.ExitCode()
	}
	message, hint := err.Error(), fault.HintOf(err)
	if kind == fault.Interrupted {
		message, hint = "interrupted: what boots is as before", ""
		var f *fault.Error // says more
		if errors.As(err, &f) && f.Kind == fault.Interrupted {
			message, hint = f.Error(), f.Hint
		}
	}
	fmt.Fprintf(e.stderr, "%s %s\n", e.paint(bold+red, "error:"), oneLine(message))
	if hint != "" {
		fmt.Fprintf(e.stderr, "%s %s\n", e.paint(bold, "hint:"), oneLine(hint))
	}
	if e.json {
		_ = e.printJSON(v1.ErrorReport{Error: v1.Error{Kind: kind.String(), Message: message, Hint: hint}})
	}
	return kind.ExitCode()
}

// oneLine keeps an error on its line, and terminal control sequences that a
// registry or an image put into a message away from the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r < ' ' || (r >= 0x7f && r < 0xa0):
			return '?'
		}
		return r
	}, strings.TrimSpace(s))
}

// columns sets lines of cells below each other, safe to show.
func columns(rows [][]string) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			row[i] = oneLine(cell)
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	_ = w.Flush() // a strings.Builder takes everything
	return b.String()
}

const (
	bold   = "1"
	red    = ";31"
	green  = ";32"
	yellow = ";33"
)

// paint colours text for a terminal.
func (e *env) paint(code, text string) string {
	if !e.colored() {
		return text
	}
	return "\x1b[" + strings.TrimPrefix(code, ";") + "m" + text + "\x1b[0m"
}

func (e *env) colored() bool {
	switch e.color {
	case "always":
		return true
	case "never":
		return false
	}
	return os.Getenv("NO_COLOR") == "" && isTerminal(e.stderr) && isTerminal(e.stdout)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	// A command of a code block, behind a prompt or not, and one within a sentence.
	blockCommand  = regexp.MustCompile(`(?m)^    (?:[#$] )?(?:sudo )?(?:\./|bin/)?kedge ([^#\n]*)`)
	inlineCommand = regexp.MustCompile("`kedge ([^`]+)`")
)

// TestDocumentedCommands: verbs and flags of which the documents tell are there.
func TestDocumentedCommands(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	app, n := newApp(&env{}), 0
	for _, page := range append(pages, "../../README.md", "../../CONTRIBUTING.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range []*regexp.Regexp{blockCommand, inlineCommand} {
			for _, found := range form.FindAllStringSubmatch(string(text), -1) {
				n++
				command, _, _ := strings.Cut(found[1], " | ")
				args := strings.Fields(command)
				if args[0] == "VERB" {
					continue
				}
				// A flag may be named without its value.
				if _, err := arrange(app, args); err != nil && !strings.Contains(err.Error(), "needs") {
					t.Errorf("%s: kedge %s: %v", filepath.Base(page), found[1], err)
				}
			}
		}
	}
	if n < 100 {
		t.Errorf("%d commands were found, which is too few", n)
	}
}

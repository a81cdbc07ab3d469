// Reads bodies as a Go server would, with encoding/json: `reader unmarshal` takes a body whole, `reader decoder` stops at
// the end of the first document, as a handler that decodes from the request does.
//
// Standard input holds batches: how many bodies, how many bytes they take, and the bodies, each after its length; all
// numbers have 32 bits, little-endian. For each body one byte is answered: 1 where a metered model is read, 0 where not.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"strings"
)

type request struct {
	Model string `json:"model"`
}

func isMetered(body []byte, whole bool) byte {
	var asked request
	var err error
	if whole {
		err = json.Unmarshal(body, &asked)
	} else {
		err = json.NewDecoder(bytes.NewReader(body)).Decode(&asked)
	}
	// A server that looks at what was read in spite of the error is the worst case.
	_ = err
	model := strings.Map(func(letter rune) rune {
		if 'A' <= letter && letter <= 'Z' {
			return letter + 'a' - 'A'
		}
		return letter
	}, asked.Model)
	if strings.HasPrefix(model, "nvidia/") || strings.HasPrefix(model, "nvidia_nim/") {
		return 1
	}
	return 0
}

func main() {
	whole := os.Args[1] == "unmarshal"
	head := make([]byte, 8)
	for {
		if _, err := io.ReadFull(os.Stdin, head); err != nil {
			return
		}
		answers := make([]byte, binary.LittleEndian.Uint32(head))
		batch := make([]byte, binary.LittleEndian.Uint32(head[4:]))
		if _, err := io.ReadFull(os.Stdin, batch); err != nil {
			return
		}
		for number := range answers {
			length := binary.LittleEndian.Uint32(batch)
			answers[number] = isMetered(batch[4:4+length], whole)
			batch = batch[4+length:]
		}
		if _, err := os.Stdout.Write(answers); err != nil {
			return
		}
	}
}

"""Formats: conversion of bytes and text to values and back, without sockets and files."""
